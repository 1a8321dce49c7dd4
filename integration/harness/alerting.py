"""Our rules in a real Prometheus and our routes in a real Alertmanager that notifies a webhook, sixty times as fast.

These are the only changes to the files in ``dashboards/``:

- every duration (windows, offsets, ``for``, intervals, grouping) is divided by :data:`SPEED`: an hour is a minute here.
  Numbers of requests, shares, thresholds and names stay the same: ``…:increase5m`` covers five seconds;
- every receiver of the Alertmanager becomes a webhook of the same name.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.harness.processes import BIN, ROOT, Group, environment, free_port

SPEED = 60
RULES = sorted((ROOT / "dashboards/prometheus").glob("*.rules.yml"))
ROUTES = ROOT / "dashboards/alertmanager/alertmanager.yml"
UNPACKED = BIN.parent / "debian/usr/bin/prometheus-alertmanager"
_BESIDE_ITS_TEMPLATES = ("unshare", "-rm", "sh", "-c", 'mount --bind "$0" /usr/share && exec "$@"')
"""Debian's Alertmanager reads its templates at an absolute path; for this process that is the unpacked folder."""
_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION = r"(?:\d+(?:ms|[smhdw]))+"
_RULE_TIMES = ("for", "keep_firing_for")
_ROUTE_TIMES = ("group_wait", "group_interval", "repeat_interval")


def shortened(duration: str) -> str:
    """``1h`` is ``60000ms``."""
    total = sum(int(number) * _MS[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdw])", duration))
    return f"{max(1, total // SPEED)}ms"


def shortened_query(expression: str) -> str:
    """A PromQL expression with each range, step and offset shortened."""
    ranges = re.compile(rf"\[({_DURATION})(?::({_DURATION})?)?\]")

    def window(found: re.Match[str]) -> str:
        step = f":{shortened(found[2]) if found[2] else ''}" if ":" in found[0] else ""
        return f"[{shortened(found[1])}{step}]"

    expression = ranges.sub(window, expression)
    return re.sub(rf"\boffset ({_DURATION})", lambda found: f"offset {shortened(found[1])}", expression)


def shortened_rules(text: str) -> str:
    """A rule file with shortened durations, as JSON, which is YAML."""
    rules = yaml.safe_load(text)
    for group in rules["groups"]:
        if "interval" in group:
            group["interval"] = shortened(group["interval"])
        for rule in group["rules"]:
            rule["expr"] = shortened_query(rule["expr"])
            rule.update({name: shortened(rule[name]) for name in _RULE_TIMES if name in rule})
    return json.dumps(rules)


def shortened_routes(text: str, webhook: str) -> str:
    """Alertmanager's configuration with shortened durations, each receiver a path of the webhook."""
    config = yaml.safe_load(text)

    def shorten(route: dict[str, Any]) -> None:
        route.update({name: shortened(route[name]) for name in _ROUTE_TIMES if name in route})
        for inner in route.get("routes", []):
            shorten(inner)

    shorten(config["route"])
    config["receivers"] = [
        {"name": receiver["name"], "webhook_configs": [{"url": f"{webhook}/{receiver['name']}", "send_resolved": True}]}
        for receiver in config["receivers"]
    ]
    kept = ("route", "receivers", "inhibit_rules", "time_intervals", "mute_time_intervals")
    return json.dumps({name: config[name] for name in kept if name in config})


@dataclass(frozen=True)
class Notice:
    """An alert in a notification to a receiver."""

    receiver: str
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]
    at: float

    @property
    def name(self) -> str:
        return self.labels["alertname"]


@dataclass
class Alertmanager:
    """A running Alertmanager and the notifications that it has sent."""

    url: str
    notices: list[Notice] = field(default_factory=list)

    def notified(self, status: str) -> set[str]:
        """Names of the alerts of which a receiver was notified as ``firing`` or ``resolved``."""
        return {notice.name for notice in self.notices if notice.status == status}

    def alerts(self) -> list[dict[str, Any]]:
        """Its current alerts."""
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=10) as reply:  # noqa: S310 - a URL of the test
            return json.load(reply)


@contextmanager
def _webhook(notices: list[Notice]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver = self.path.strip("/")
            for alert in body["alerts"]:
                told = Notice(receiver, alert["status"], alert["labels"], alert["annotations"], time.time())
                notices.append(told)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _beside_its_templates() -> list[str]:
    command = [*_BESIDE_ITS_TEMPLATES, str(UNPACKED.parents[1] / "share")]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"Debian's alertmanager needs a private mount, which is not allowed here: {tried.stderr.strip()}")
    return command


@contextmanager
def alertmanager(folder: Path) -> Iterator[Alertmanager]:
    """Debian's Alertmanager with our routes and shortened durations."""
    binary = UNPACKED if UNPACKED.exists() else shutil.which("alertmanager")
    if binary is None:
        pytest.skip("no alertmanager: `make test` unpacks Debian's where apt is; elsewhere install it")
    url = f"http://127.0.0.1:{free_port()}"
    running = Alertmanager(url)
    with _webhook(running.notices) as webhook:
        config = folder / "alertmanager.yml"
        config.write_text(shortened_routes(ROUTES.read_text(), webhook))
        command = _beside_its_templates() if binary == UNPACKED else []
        command += [str(binary), f"--config.file={config}", f"--storage.path={folder / 'alertmanager'}"]
        command += [f"--web.listen-address={url.removeprefix('http://')}", "--cluster.listen-address="]
        group = Group(command, environment({}), folder, folder / "alertmanager.log")
        try:
            _wait_ready(url, group)
            yield running
        finally:
            group.stop(10.0)


def _wait_ready(url: str, group: Group, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(f"{url}/-/ready", timeout=2).close()  # noqa: S310 - a URL of the test
            return
        except OSError:
            if group.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{group.log.name}: it did not start:\n{group.text()[-2000:]}") from None
            time.sleep(0.1)
