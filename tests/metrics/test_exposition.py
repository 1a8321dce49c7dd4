"""The process's Prometheus registry, in separate processes: it cannot be emptied."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

ONE = """
from opentelemetry.context import Context
from corevital_otel.metrics.exposition import Exposition
from corevital_otel.metrics.instruments import INSTRUMENTS

def put(output, name, value, **labels):
    its = {label: labels.get(label.replace(".", "_"), "x") for label in INSTRUMENTS[name].labels}
    output.put(INSTRUMENTS[name], value, its, Context())

first, second = Exposition(), Exposition()  # an engine, and a second one in the same process
put(first, "corevital.requests", 2)
put(second, "corevital.requests", 1)
put(first, "corevital.sequences.running", 5)
put(first, "corevital.sequences.running", 3)
put(second, "corevital.sequences.running", 4)
put(first, "corevital.risk_score", 0.42)
put(first, "corevital.telemetry.faults", 0)
"""
SHOW = """
from prometheus_client import REGISTRY, generate_latest
print(generate_latest(REGISTRY).decode())
"""
SHOW_ALL = """
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def run(code: str, **env: str) -> dict[str, float]:
    """Runs code; sums of the samples on the page that it prints, by name."""
    clean = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env={**clean, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(done.stdout):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0) + sample.value
    return totals


def test_two_engines_in_one_process_add_up() -> None:
    page = run(ONE + SHOW)
    assert page["corevital_requests_total"] == 3
    assert page["corevital_sequences_running"] == 7
    assert page["corevital_risk_score_count"] == 1
    assert page["corevital_telemetry_faults_total"] == 0


def test_gauges_of_an_ended_engine_are_removed() -> None:
    page = run(ONE + "first.close(1.0)\n" + SHOW)
    assert page["corevital_sequences_running"] == 4
    assert page["corevital_requests_total"] == 3


def test_several_processes_add_up_on_any_of_their_pages(tmp_path: Path) -> None:
    run(ONE, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    page = run(ONE + SHOW_ALL, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert page["corevital_requests_total"] == 6
    assert page["corevital_risk_score_count"] == 2
    assert page["corevital_sequences_running"] == 14
