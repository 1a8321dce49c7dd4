"""A wrong variable ends `vllm serve` before the engine starts, with one line."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from corevital import plugin

ENDPOINT = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()  # variables are rewritten for the SDK
    os.environ.update(before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_SCHEDULE_DELAY", "0"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "x"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "x"),
        ("COREVITAL_CAPTURE", "x"),
        ("COREVITAL_PROFILE", "/nowhere/p.json"),
    ],
)
def test_the_start_ends_with_one_line(name: str, value: str) -> None:
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, name: value}
    with pytest.raises(SystemExit) as ended:
        plugin._resolve(["corevital"])
    line = str(ended.value.code)
    assert line.startswith(f"corevital: {name}")
    assert line.isprintable()


def test_an_endpoint_of_the_engine_s_own_counts_too() -> None:
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "0"
    with pytest.raises(SystemExit, match=r"^corevital: OTEL_BSP_SCHEDULE_DELAY='0' is not allowed"):
        plugin._resolve(["corevital"], ENDPOINT)


def test_what_is_disabled_starts_whatever_is_set() -> None:
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_BSP_SCHEDULE_DELAY": "0", "COREVITAL_ENABLED": "0"}
    assert plugin._resolve(["corevital", "another"]) == ["another"]
