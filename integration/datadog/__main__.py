"""Runs the Datadog Agent's OpenMetrics check with our file on a page of metrics, twice, and lists what it submits.

    python -m integration.datadog

The check is the Agent's own (PyPI ``datadog-checks-base``); what it submits goes to that library's stand-in for the
Agent. The page is made by our code, from a few reports. Exit status 1 if a metric of ours is not submitted.
"""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import httpx
import yaml
from datadog_checks.base import OpenMetricsBaseCheckV2
from datadog_checks.base.stubs import aggregator
from prometheus_client.parser import text_string_to_metric_families
from tests.harness.processes import free_port

from corevital_otel.metrics.instruments import INSTRUMENTS

ROOT = Path(__file__).parents[2]
FILE = ROOT / "dashboards/datadog/openmetrics.d/conf.yaml"
PAGE = ROOT / "tests/cli/serve_metrics.py"


def on_the_page(text: str) -> set[str]:
    """OpenTelemetry names of the instruments that a page has; histograms only where they have a value."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    present = {name: families[found.prometheus] for name, found in INSTRUMENTS.items() if found.prometheus in families}
    return {
        name
        for name, family in present.items()
        if family.type != "histogram" or any(s.value for s in family.samples if s.name.endswith("_count"))
    }


def main() -> int:
    """Serve a page, run the check, compare."""
    (instance,) = yaml.safe_load(FILE.read_text())["instances"]
    port = free_port()
    server = subprocess.Popen([sys.executable, str(PAGE), str(port), "1", "2"])
    try:
        url = f"http://127.0.0.1:{port}/metrics"
        for _ in range(100):
            try:
                page = httpx.get(url).text
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        check = OpenMetricsBaseCheckV2("openmetrics", {}, [{**instance, "openmetrics_endpoint": url}])
        for _ in range(2):  # a counter's first value is its start
            if error := check.run():
                print(error)
                return 1
            time.sleep(1)
    finally:
        server.terminate()
        server.wait(10)
    sent = {f"corevital.{name.removeprefix('corevital.')}" for name in on_the_page(page)}
    kinds = {name: INSTRUMENTS.get(name, INSTRUMENTS.get(name.removeprefix("corevital."))).kind for name in sent}
    missing = []
    for name, kind in sorted(kinds.items()):
        submitted = f"{name}.count" if kind == "counter" else name
        found = aggregator.metrics(submitted) or aggregator.histogram_bucket(submitted)
        if not found:
            missing.append(submitted)
    library = f"datadog-checks-base {version('datadog-checks-base')}"
    print(f"{len(sent) - len(missing)} of {len(sent)} metrics of the page submitted; {library}")
    for name in missing:
        print(f"not submitted: {name}")
    return 1 if missing or not sent else 0


if __name__ == "__main__":
    sys.exit(main())
