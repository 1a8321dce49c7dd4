"""A real Prometheus that scrapes our pages every second."""

from __future__ import annotations

import json
import shutil
import signal
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.harness.processes import BIN, Group, environment, free_port

UNPACKED = BIN.parent / "debian/usr/bin/prometheus"
"""Where ``make test`` unpacks Debian's package."""

Sample = dict[str, str]
Point = tuple[float, float]


class Prometheus:
    """A running one.

    Args:
        url: where it listens.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[tuple[Sample, float]]:
        """An instant vector: labels and value of each series."""
        result = self._get("/api/v1/query", {"query": expression})["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def value(self, expression: str) -> float:
        """The sum of an instant vector; 0 where it is empty."""
        return sum(value for _, value in self.query(expression))

    def metadata(self) -> dict[str, str]:
        """Type of each metric scraped."""
        found = self._get("/api/v1/metadata", {})
        return {name: entries[0]["type"] for name, entries in found.items()}

    def range(self, expression: str, start: float, end: float, step_s: float) -> list[tuple[Sample, list[Point]]]:
        """Each series of an expression over a time: labels, and pairs of unix time and value."""
        parameters = {"query": expression, "start": str(start), "end": str(end), "step": str(step_s)}
        result = self._get("/api/v1/query_range", parameters)["result"]
        return [(series["metric"], [(at, float(value)) for at, value in series["values"]]) for series in result]

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or firing now."""
        return list(self._get("/api/v1/alerts", {})["alerts"])

    def rule_files(self) -> set[str]:
        """Files of the rules that it evaluates."""
        return {str(group["file"]) for group in self._get("/api/v1/rules", {})["groups"]}

    def names(self, job: str) -> set[str]:
        """Names of the series of a job."""
        return {str(name) for name in self._get("/api/v1/label/__name__/values", {"match[]": f'{{job="{job}"}}'})}

    def wait_for(self, done: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until ``done()`` is true, or fail."""
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, "not in Prometheus in time"
            time.sleep(0.3)

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as reply:  # noqa: S310 - a URL of the test
            return json.load(reply)["data"]


@contextmanager
def prometheus(
    folder: Path,
    targets: Mapping[str, int | Mapping[str, int]],
    rules: Sequence[Path] = (),
    alertmanager: str | None = None,
) -> Iterator[Prometheus]:
    """One that scrapes ``/metrics`` on loopback ports, by job name, and evaluates rules every second.

    Args:
        folder: for its files.
        targets: port by job; or, of a job with several servers, port by their names.
        rules: rule files.
        alertmanager: URL of the one that alerts go to.
    """
    binary = UNPACKED if UNPACKED.exists() else shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus: `make test` unpacks Debian's where apt is; elsewhere install it")
    port = free_port()
    jobs = [{"job_name": job, "static_configs": _static(target)} for job, target in targets.items()]
    servers = sum(len(job["static_configs"]) for job in jobs)
    settings: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": jobs,
    }
    if alertmanager:
        to = [{"static_configs": [{"targets": [alertmanager.removeprefix("http://")]}]}]
        settings["alerting"] = {"alertmanagers": to}
    config = folder / "prometheus.yml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [str(binary), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += ["--rules.alert.resend-delay=1s"]
    group = Group(
        [*command, f"--web.listen-address=127.0.0.1:{port}"], environment({}), folder, folder / "prometheus.log"
    )
    try:
        _wait_ready(f"http://127.0.0.1:{port}", group)
        running = Prometheus(f"http://127.0.0.1:{port}")
        if rules:  # once it knows its targets, which takes five seconds: to the shortened rules they would seem absent
            running.wait_for(lambda: len(running.query("up")) == servers)
            config.write_text(json.dumps({**settings, "rule_files": [str(rule) for rule in rules]}))
            group.process.send_signal(signal.SIGHUP)
            running.wait_for(lambda: len(running.rule_files()) == len(rules))
        yield running
    finally:
        group.stop(10.0)


def _static(target: int | Mapping[str, int]) -> list[dict[str, Any]]:
    if isinstance(target, int):
        return [{"targets": [f"127.0.0.1:{target}"]}]
    return [{"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}} for name, port in target.items()]


def _wait_ready(url: str, group: Group, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(f"{url}/-/ready", timeout=2).close()  # noqa: S310 - a URL of the test
            return
        except (urllib.error.URLError, OSError):
            if group.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Prometheus did not start:\n{group.text()[-2000:]}") from None
            time.sleep(0.1)
