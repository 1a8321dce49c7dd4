"""Three real vLLM servers of one model under traffic, watched as in :mod:`integration.harness.watched`.

One change to the configuration: a server may be away for six hours, which are six minutes here. An engine starts no
faster for the rules being in a hurry.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dashboards.source import rules
from dashboards.source.config import CONFIG
from integration.harness.alerting import Alertmanager, Notice, alertmanager
from integration.harness.prometheus import Prometheus, prometheus
from integration.harness.traffic import Traffic
from integration.harness.vllm_server import Vllm
from integration.harness.watched import ARGUMENTS, ENV, shortened_files, until

WATCHDOG = "CorevitalWatchdog"
"""Always fires, for a dead man's receiver."""
_CONFIG = CONFIG.model_copy(update={"times": CONFIG.times.model_copy(update={"deploy": "6h"})})


@dataclass
class Replica:
    """A server and what a load balancer sends it."""

    server: Vllm
    traffic: Traffic

    def restart(self, meanwhile: Callable[[], object], ready_s: float = 360.0) -> float:
        """As a deploy does it: no new requests, SIGTERM to the server, the same again.

        Args:
            meanwhile: called about every second.
            ready_s: how long the new one may take to start.

        Returns:
            For how many seconds it had no traffic.
        """
        began, mix = time.monotonic(), self.traffic.mix
        self.traffic.mix = {}
        time.sleep(0.5)  # what was due is sent
        self.server.process.terminate()
        assert self.server.wait_gone(60) == {}
        self.server.start()
        while not self.server.ready():
            assert time.monotonic() - began < ready_s, self.server.text()[-4000:]
            meanwhile()
            time.sleep(1)
        self.traffic.mix = mix
        return time.monotonic() - began

    @contextmanager
    def stopped_engine(self) -> Iterator[None]:
        """Its engine core stands still; the API server answers."""
        cores = [pid for pid, command in self.server.members().items() if "EngineCore" in command]
        assert cores, self.server.members()
        for pid in cores:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in cores:
                os.kill(pid, signal.SIGCONT)


@dataclass
class Replicas:
    """All of it, running; servers by their instance's name."""

    servers: dict[str, Replica]
    prometheus: Prometheus
    alertmanager: Alertmanager

    def wait_for_requests(self) -> None:
        """Until each server has answered some within ten seconds."""
        counted = "count(sum by (instance) (increase(corevital_requests_total[10s])) > 5)"
        until(lambda: self.prometheus.value(counted) == len(self.servers), 90, "requests of each server")

    def firing(self) -> set[str]:
        """Names of the alerts that fire in Prometheus now."""
        alerts = self.prometheus.alerts()
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"} - {WATCHDOG}

    def notices(self, since: float, status: str = "firing") -> list[Notice]:
        """What receivers were notified of since a Unix time."""
        found = self.alertmanager.notices
        return [each for each in found if each.at >= since and each.status == status and each.name != WATCHDOG]

    def notified(self, since: float, status: str = "firing") -> set[str]:
        """Names of those alerts."""
        return {notice.name for notice in self.notices(since, status)}


@contextmanager
def replicas(folder: Path) -> Iterator[Replicas]:
    """Everything started, no traffic yet."""
    with ExitStack() as stack:
        servers: dict[str, Vllm] = {}
        for name in ("gpu-a", "gpu-b", "gpu-c"):
            (folder / name).mkdir()
            servers[name] = Vllm(folder / name, *ARGUMENTS, env=ENV, plugin=False)
            stack.callback(servers[name].stop)
        for server in servers.values():
            server.wait_ready(600)
        ports = {name: server.port for name, server in servers.items()}
        manager = stack.enter_context(alertmanager(folder))
        files = shortened_files(folder, rules.files(_CONFIG))
        prom = stack.enter_context(prometheus(folder, {"vllm": ports}, files, manager.url))
        flows = {name: stack.enter_context(Traffic(server.url).flowing()) for name, server in servers.items()}
        yield Replicas({name: Replica(servers[name], flows[name]) for name in servers}, prom, manager)
