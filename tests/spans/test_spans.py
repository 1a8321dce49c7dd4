"""Spans by the contract, at a real collector, and with collectors that fail."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from tests.conftest import emit
from tests.harness.collector import Collector, collector

from corevital_otel.counters import Counters
from corevital_otel.report import Admission, Features, Health, RequestReport, Risk, Series
from corevital_otel.settings import SettingsError
from corevital_otel.spans.attributes import span_attributes
from corevital_otel.spans.emitter import SpanEmitter
from corevital_otel.spans.record import SpanIds, record_of

Make = Callable[..., RequestReport]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL", "TIMEOUT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def rotel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    with collector(tmp_path_factory.mktemp("rotel")) as running:
        yield running


def test_a_full_report_has_every_attribute_of_the_contract(report: Make) -> None:
    health = Health(repetition_loop_detected=True, loop_onset=4, loop_period=2)
    found = span_attributes(report(health=health, incomplete=True))
    required = [
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.response.model",
        "gen_ai.response.id",
        "gen_ai.response.finish_reasons",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.request.temperature",
        "gen_ai.request.top_p",
        "gen_ai.request.top_k",
        "gen_ai.request.max_tokens",
        "gen_ai.request.seed",
        "gen_ai.response.time_to_first_chunk",
        "corevital.risk_score",
        "corevital.risk.level",
        "corevital.risk.basis",
        "corevital.risk.factors",
        "corevital.health.nan_detected",
        "corevital.health.inf_detected",
        "corevital.health.repetition_loop_detected",
        "corevital.health.truncated",
        "corevital.health.high_entropy_steps",
        "corevital.entropy.mean",
        "corevital.entropy.max",
        "corevital.entropy.std",
        "corevital.entropy.slope",
        "corevital.entropy.sum",
        "corevital.surprisal.mean",
        "corevital.surprisal.max",
        "corevital.surprisal.sum",
        "corevital.perplexity",
        "corevital.margin.mean",
        "corevital.margin.min",
        "corevital.topk_mass.mean",
        "corevital.tokens.observed",
        "corevital.incomplete",
        "corevital.logits.stage",
        "corevital.engine",
        "corevital.runner",
        "corevital.version",
        "corevital.capture",
    ]
    assert set(required) <= found.keys()
    assert found["corevital.health.repetition_loop_detected"] is True
    assert found["corevital.risk.factors"] == ("entropy peak 6.2 bits",)
    assert record_of(report(), SpanIds("1" * 32, "1" * 16)).name == "chat tiny"


def test_what_is_not_known_is_absent(report: Make) -> None:
    empty = report(features=Features(entropy_max=float("inf")), risk=Risk(score=None, level="unknown"), tokens=0)
    found = span_attributes(empty)
    for name in ("corevital.risk_score", "corevital.entropy.mean", "corevital.entropy.max", "corevital.incomplete"):
        assert name not in found
    assert found["corevital.risk.level"] == "unknown"


@pytest.mark.parametrize("wire", ["grpc", "http/protobuf"])
def test_a_span_arrives_whole(monkeypatch: pytest.MonkeyPatch, rotel: Collector, report: Make, wire: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.grpc if wire == "grpc" else rotel.http)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", wire)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    values = np.arange(600, dtype=np.float32)
    values[5] = np.nan
    sent = report(tokens=600, series=Series(entropy=values, surprisal=values, margin=values, topk_mass=values))
    caller = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))
    counters = Counters()
    emitter = SpanEmitter(counters, engine={"engine.name": "vllm"})
    before = len(rotel.sink.spans)
    ids = emit(emitter, report(tokens=600, series=sent.series, admission=Admission(parent=caller)))
    root = emit(emitter, report(series=None))
    emitter.shutdown(10)
    spans = {span.span_id: span for span in rotel.sink.wait_for(before + 2)[before:]}
    span = spans[ids.span_id]
    assert (span.trace_id, span.parent_id) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert spans[root.span_id].parent_id == ""
    assert (span.start_ns, span.end_ns) == (sent.admitted.arrival_ns, sent.outcome.end_ns)
    (_, evaluation), *series = span.events
    assert evaluation == {
        "gen_ai.evaluation.name": "corevital.risk_score",
        "gen_ai.evaluation.score.value": 0.25,
        "gen_ai.evaluation.score.label": "low",
        "gen_ai.evaluation.explanation": "0 is good, 1 is bad; basis prior: entropy peak 6.2 bits",
        "gen_ai.response.id": "chatcmpl-1",
    }
    assert [(name, event["offset"], len(event["margin"])) for name, event in series] == [
        ("corevital.series", 0, 256), ("corevital.series", 256, 256), ("corevital.series", 512, 88),
    ]  # fmt: skip
    assert series[0][1]["entropy"][4:7] == [4.0, -1.0, 6.0]
    assert span.resource["service.name"] == "vllm"
    assert span.resource["deployment.environment.name"] == "test"
    assert counters.get("corevital.telemetry.exported", signal="traces") == 2


def test_a_current_span_that_is_not_the_parent_is_left_alone(report: Make) -> None:
    emitter = SpanEmitter(Counters())
    with trace.use_span(NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)))):
        ids = emit(emitter, report())
    assert ids.trace_id != f"{1:032x}"
    emitter.shutdown(1)


def test_without_an_endpoint_nothing_connects(monkeypatch: pytest.MonkeyPatch, report: Make) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no connection may be made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    emitter = SpanEmitter(Counters())
    ids = emit(emitter, report())
    emitter.shutdown(1)
    assert int(ids.trace_id, 16)
    assert int(ids.span_id, 16)


@pytest.mark.parametrize("off", [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_standard_switches_are_obeyed_and_ids_stay_unique(
    monkeypatch: pytest.MonkeyPatch, report: Make, off: tuple[str, str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(*off)
    counters = Counters()
    emitter = SpanEmitter(counters)
    assert len({emit(emitter, report()).span_id for _ in range(10)}) == 10
    emitter.shutdown(1)
    assert counters.get("corevital.telemetry.dropped") == 0


def test_an_unknown_protocol_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(
        SettingsError, match=r"^OTEL_EXPORTER_OTLP_PROTOCOL='carrier-pigeon' is not allowed: use one of"
    ):
        SpanEmitter(Counters())


@pytest.mark.parametrize("wire", ["grpc", "http/protobuf"])
def test_a_dead_collector_costs_one_warning_and_a_bounded_end(
    monkeypatch: pytest.MonkeyPatch,
    report: Make,
    caplog: pytest.LogCaptureFixture,
    logged: Callable[[], list[logging.LogRecord]],
    wire: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", wire)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        counters = Counters()
        emitter = SpanEmitter(counters)
        start = time.monotonic()
        for _ in range(5):
            emit(emitter, report())
        emitter.shutdown(4)
        assert time.monotonic() - start < 6
    assert counters.get("corevital.telemetry.dropped", what="span") == 5
    assert 1 <= len(logged()) <= 2
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry.exporter")]


def test_a_full_queue_is_counted(monkeypatch: pytest.MonkeyPatch, report: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
        counters = Counters()
        emitter = SpanEmitter(counters)
        for _ in range(40):
            emit(emitter, report(series=None))
        assert counters.get("corevital.telemetry.dropped", what="span", why="queue_full") == 24
        emitter.shutdown(0.5)
