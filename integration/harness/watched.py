"""A real vLLM with the plugin under traffic, watched by a real Prometheus and Alertmanager with our files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from integration.harness.alerting import RULES, Alertmanager, alertmanager, shortened_rules
from integration.harness.prometheus import Prometheus, prometheus
from integration.harness.runners import python_path
from integration.harness.traffic import Traffic
from integration.harness.vllm_server import Vllm, vllm


@dataclass
class Watched:
    """All of it, running."""

    server: Vllm
    prometheus: Prometheus
    alertmanager: Alertmanager
    traffic: Traffic
    database: Path

    def names(self, state: str) -> set[str]:
        """Names of the alerts that are ``pending`` or ``firing`` in Prometheus now."""
        return {alert["labels"]["alertname"] for alert in self.prometheus.alerts() if alert["state"] == state}


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait for a condition; returns the seconds that it took.

    Raises:
        AssertionError: it was not met in time.
    """
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.3)
    return time.monotonic() - start


ENV = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
ARGUMENTS = (
    "--logits-processors", "integration.harness.faults:PoisonedLogits", "corevital", "--dtype", "float32",
    "--shutdown-timeout", "30",  # as in the Helm chart: requests in flight are answered
)  # fmt: skip


def shortened_files(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Rule files, by their names, with shortened durations."""
    for name, text in texts.items():
        (folder / name).write_text(shortened_rules(text))
    return [folder / name for name in texts]


@contextmanager
def watched(folder: Path, otlp: str | None = None) -> Iterator[Watched]:
    """Everything started, no traffic yet.

    Args:
        folder: for logs, data and the store.
        otlp: endpoint that spans go to by HTTP; none without.
    """
    env = dict(ENV)
    if otlp:
        env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        env |= {
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "COREVITAL_OTEL_PROFILE": "phoenix",
        }
    rules = shortened_files(folder, {rule.name: rule.read_text() for rule in RULES})
    with (
        vllm(folder, *ARGUMENTS, env=env, plugin=False, ready_s=300) as server,
        alertmanager(folder) as manager,
        prometheus(folder, {"vllm": server.port}, rules, manager.url) as prom,
        Traffic(server.url).flowing() as traffic,
    ):
        yield Watched(server, prom, manager, traffic, folder / "runs/corevital.db")
