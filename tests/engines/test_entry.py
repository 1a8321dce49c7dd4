"""A wrong variable ends `vllm serve` before the engine starts, with one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from corevital.engines.protocol import Facts
from corevital.engines.vllm import engine
from corevital.engines.vllm.facts import Running
from corevital.engines.vllm.register import resolve
from corevital.entry import Telemetry
from corevital.frames.layout import Source
from corevital.log import LOGGER_NAME, TextFormatter

HOST = Telemetry(engine)
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
        resolve(["corevital"], HOST)
    line = str(ended.value.code)
    assert line.startswith(f"corevital: {name}")
    assert line.isprintable()


def test_an_endpoint_of_the_engine_s_own_counts_too() -> None:
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "0"
    with pytest.raises(SystemExit, match=r"^corevital: OTEL_BSP_SCHEDULE_DELAY='0' is not allowed"):
        resolve(["corevital"], HOST, ENDPOINT)


def test_what_is_disabled_starts_whatever_is_set() -> None:
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_BSP_SCHEDULE_DELAY": "0", "COREVITAL_ENABLED": "0"}
    assert resolve(["corevital", "another"], HOST) == ["another"]


def test_what_is_disabled_follows_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a configuration names the class and no setting was looked at before."""
    monkeypatch.setenv("COREVITAL_ENABLED", "0")
    assert HOST.core(Running(None, None)) is None


class OneCore:
    """Stands in for an engine: one that runs."""

    def facts(self, running: Running) -> Facts:
        return Facts(model="tiny", source=Source("vllm", "v1", "raw"), resource={"engine.name": "vllm"})


@pytest.mark.parametrize(("name", "lines"), [("vllm", 0), ("sglang", 1), ("tgi", 1), ("transformers", 1)])
def test_a_setting_that_the_engine_cannot_obey_is_logged_once(
    name: str, lines: int, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    monkeypatch.setenv("COREVITAL_STOP_ON", "loop")
    monkeypatch.setenv("COREVITAL_DB", "")

    class Engine(OneCore):
        def facts(self, running: Running) -> Facts:
            return Facts(model="tiny", source=Source(name, "v1", "raw"), resource={"engine.name": name})

        def follow(self, running: Running, observer: Any, *, content: bool, hash_key: str | None) -> bool:
            observer.close()
            return False

    for _ in range(2):
        assert Telemetry(Engine()).start(Running(None, None), os.environ) is None  # type: ignore[arg-type]
    said = [record.getMessage() for record in logged() if "COREVITAL_STOP_ON" in record.getMessage()]
    assert said == ["COREVITAL_STOP_ON has no effect: only vLLM can end a sequence early"] * lines


def test_lines_of_a_core_look_like_those_of_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger(LOGGER_NAME)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    host = Telemetry(OneCore()).core(Running(None, None))  # type: ignore[arg-type]
    assert host is not None
    host.hub.close()
    assert [type(handler.formatter) for handler in logger.handlers] == [TextFormatter]
