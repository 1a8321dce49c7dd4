"""The Datadog Agent's file: `make check-datadog` runs it in the Agent's check."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from corevital_otel.metrics.instruments import INSTRUMENTS

FILE = Path(__file__).resolve().parents[2] / "dashboards/datadog/openmetrics.d/conf.yaml"


def test_every_metric_is_read_under_its_opentelemetry_name() -> None:
    (instance,) = yaml.safe_load(FILE.read_text())["instances"]
    (names,) = [instance["metrics"]]
    read = {name: f"{instance['namespace']}.{renamed}" for each in names for name, renamed in each.items()}
    expected = {found.prometheus: f"corevital.{name.removeprefix('corevital.')}" for name, found in INSTRUMENTS.items()}
    assert read == expected
    # the check takes a name with other characters for a pattern
    assert all(re.fullmatch(r"[a-z_]+", name) for name in read)
