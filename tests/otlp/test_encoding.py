"""Spans as bytes: what the SDK would have sent, within its limits, of exact size, each alone."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)
from tests.conftest import emit
from tests.harness.faulty import Behaviour, Received, grpc_receiver, http_receiver

from corevital_otel import __version__
from corevital_otel.counters import Counters
from corevital_otel.otlp.encoding import (
    EncodedItem,
    SpanDraft,
    encode,
    encode_readable,
    event,
    group_of,
    request,
    series_events,
    series_size,
)
from corevital_otel.otlp.kinds import SPANS
from corevital_otel.report import Admission, RequestReport, Series
from corevital_otel.spans.attributes import evaluation_of, span_attributes
from corevital_otel.spans.emitter import SpanEmitter

Make = Callable[..., RequestReport]
DROPPED, EXPORTED = "corevital.telemetry.dropped", "corevital.telemetry.exported"
UNLIMITED = SpanLimits(max_events=SpanLimits.UNSET)
RESOURCE = Resource({"service.name": "vllm", "n": 3})
CALLER = SpanContext(0xABC, 0xDEF, True, TraceFlags(1), TraceState([("vendor", "1"), ("other", "2")]))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL", "TIMEOUT", "COMPRESSION"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with http_receiver() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield running


def series(tokens: int) -> Series:
    values = np.linspace(0, 1, tokens, dtype=np.float32)
    return Series(entropy=values, surprisal=values, margin=values, topk_mass=values)


def draft(report: RequestReport, parent: SpanContext | None = None, limits: SpanLimits = UNLIMITED) -> SpanDraft:
    attributes = span_attributes(report)
    end_ns = report.outcome.end_ns
    events = [event("gen_ai.evaluation.result", end_ns, evaluation_of(attributes), limits)]
    if report.series is not None:
        events += series_events(report.series, end_ns, limits)
    return SpanDraft(
        name="chat tiny", trace_id=0xABC, span_id=0x123, parent=parent, attributes=attributes,
        start_ns=report.admitted.arrival_ns, end_ns=end_ns, events=events,
        error="the engine reported an error" if report.outcome.reason == "error" else None,
    )  # fmt: skip


def sdk_span(report: RequestReport, parent: SpanContext | None = None) -> ReadableSpan:
    """What the SDK makes of a report."""
    attributes = span_attributes(report)
    end_ns = report.outcome.end_ns
    events = [Event("gen_ai.evaluation.result", evaluation_of(attributes), end_ns)]
    for offset in range(0, len(report.series or ()), 256):
        of_series: dict[str, Any] = {"offset": offset}
        for name in ("entropy", "surprisal", "margin", "topk_mass"):
            of_series[name] = getattr(report.series, name)[offset : offset + 256].astype(float).tolist()
        events.append(Event("corevital.series", of_series, end_ns))
    failed = report.outcome.reason == "error"
    return ReadableSpan(
        "chat tiny",
        SpanContext(0xABC, 0x123, False, TraceFlags(1), parent.trace_state if parent else None),
        parent, RESOURCE, attributes, events, kind=SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR, "the engine reported an error") if failed else Status(),
        start_time=report.admitted.arrival_ns, end_time=end_ns,
        instrumentation_scope=InstrumentationScope("corevital", __version__),
    )  # fmt: skip


def only(encoded: EncodedItem) -> Span:
    return request([encoded]).resource_spans[0].scope_spans[0].spans[0]


@pytest.mark.parametrize("parent", [None, CALLER])
@pytest.mark.parametrize("changes", [{}, {"series": None}, {"reason": "error"}, {"tokens": 600, "series": series(600)}])
def test_a_span_is_encoded_as_the_sdk_does(report: Make, parent: SpanContext | None, changes: dict[str, Any]) -> None:
    made = report(**changes)
    for _ in range(2):  # the second one with a message that is used again
        assert request([encode(draft(made, parent), group_of(RESOURCE), UNLIMITED)]) == encode_spans(
            [sdk_span(made, parent)]
        )


def test_a_message_that_is_used_again_keeps_nothing_of_the_span_before(report: Make) -> None:
    group = group_of(RESOURCE)
    first = report(reason="error", tokens=600, series=series(600))
    second = report(reason="stop", series=None)
    object.__setattr__(second.admitted, "tags", ())
    alone = only(encode(draft(second), group, UNLIMITED))
    encode(draft(first, CALLER), group, UNLIMITED)
    assert only(encode(draft(second), group, UNLIMITED)) == alone


def test_values_that_are_not_known_are_minus_one_and_sizes_are_known_before(report: Make) -> None:
    values: Any = np.array([1.0, np.nan, np.inf, -np.inf], np.float64)
    found = series_events(Series(entropy=values, surprisal=values, margin=values, topk_mass=values), 5, UNLIMITED)
    (made,) = (Span.Event.FromString(each) for each in found)
    by_key = {pair.key: pair.value for pair in made.attributes}
    assert [value.double_value for value in by_key["margin"].array_value.values] == [1.0, -1.0, -1.0, -1.0]
    for tokens in (1, 255, 256, 257, 5000):
        exact = sum(map(len, series_events(series(tokens), 2**62, UNLIMITED)))
        assert exact <= series_size(series(tokens)) <= exact * 1.2 + 200


def test_the_size_of_a_request_is_the_sum_of_its_parts(report: Make) -> None:
    group = group_of(RESOURCE)
    spans = [encode(draft(report(tokens=n, series=series(n))), group, UNLIMITED) for n in (1, 300, 2000)]
    spans.append(encode_readable(sdk_span(report())))
    assert spans[-1].group == group
    assert request(spans).ByteSize() <= sum(span.size for span in spans) + group.size


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "5"), ("OTEL_ATTRIBUTE_COUNT_LIMIT", "4"),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3"), ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "2"),
        ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "2"), ("OTEL_SPAN_EVENT_COUNT_LIMIT", "2"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "0"),
    ],
)  # fmt: skip
def test_the_sdks_limits_hold(
    monkeypatch: pytest.MonkeyPatch, received: Received, report: Make, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    emitter = SpanEmitter(Counters())
    tracer = emitter.provider(__import__("opentelemetry.sdk.trace.sampling", fromlist=["x"]).ALWAYS_ON, None)
    made = report(tokens=600, series=series(600))
    emit(emitter, made)
    emitter.shutdown(5)
    (ours,) = received.spans
    plain = sdk_span(made)
    span = tracer.get_tracer("corevital", __version__).start_span(
        plain.name, attributes=plain.attributes, start_time=plain.start_time
    )
    for each in plain.events:
        span.add_event(each.name, each.attributes, each.timestamp)
    span.end(plain.end_time)
    theirs = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]  # type: ignore[list-item]
    for each in (ours, theirs):
        each.trace_id = each.span_id = b""
    assert ours == theirs


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": "i" * 34_000_000},
        {"request_id": "a\ud800b"},
        {"model": "ad\udce9"},
        {"model": "m" * 10_000_000},
        {"tags": ("t\udfff", "x" * 5_000_000)},
    ],
)
def test_a_string_that_is_too_long_or_not_utf8_loses_no_span(
    received: Received, report: Make, change: dict[str, Any]
) -> None:
    counters = Counters()
    emitter = SpanEmitter(counters)
    odd = report()
    for name, value in change.items():
        object.__setattr__(odd.admitted, name, value)
    for each in (report(), odd, report()):
        emit(emitter, each)
    emitter.shutdown(5)
    assert counters.get(EXPORTED) == 3
    assert max(map(len, received.bodies)) < 20_000


def test_a_span_that_cannot_be_encoded_is_dropped_alone_and_named_once(
    received: Received, report: Make, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    counters = Counters()
    fates: list[tuple[str, bool]] = []
    emitter = SpanEmitter(counters, fate=lambda ids, done: fates.extend((each, done) for each in ids))
    ids = []
    for number in range(10):
        odd = report()
        if number in (3, 4):
            object.__setattr__(odd.admitted, "arrival_ns", -5)
        ids.append(emit(emitter, odd).span_id)
    emitter.shutdown(5)
    assert (counters.get(EXPORTED), counters.get(DROPPED, what="span", why="unencodable")) == (8, 2)
    assert sorted(each for each, done in fates if not done) == sorted(ids[3:5])
    (line,) = (record.getMessage() for record in logged())
    assert f"span {ids[3]} cannot be sent" in line


def test_a_span_of_the_sdk_that_cannot_be_encoded_is_dropped_alone(received: Received, report: Make) -> None:
    counters = Counters()
    emitter = SpanEmitter(counters)
    assert emitter.processor is not None
    good, bad = sdk_span(report()), sdk_span(report(model="x\udce9"))
    bad = ReadableSpan("a\udce9", bad.get_span_context(), resource=RESOURCE, start_time=1, end_time=2)
    for each in (good, bad):
        emitter.processor.on_end(each)
    emitter.shutdown(5)
    assert (counters.get(EXPORTED), counters.get(DROPPED, what="span", why="unencodable")) == (1, 1)


def test_a_series_too_large_for_a_request_is_left_out_and_the_span_arrives(received: Received, report: Make) -> None:
    counters = Counters()
    emitter = SpanEmitter(counters)
    emit(emitter, report(tokens=100_000, series=series(100_000)))
    emitter.shutdown(5)
    (span,) = received.spans
    assert (len(span.events), span.dropped_events_count) == (1, 391)
    assert counters.get(DROPPED, what="series", why="too_large") == 1
    assert counters.get(DROPPED, what="span") == 0


def test_the_queue_is_bounded_in_bytes_and_a_span_then_waits_without_its_series(
    received: Received, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corevital_otel.otlp.queue.SERIES_BYTES", 1_000_000)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    counters = Counters()
    emitter = SpanEmitter(counters)
    processor = emitter.processor
    assert processor is not None
    processor._kind = dataclasses.replace(SPANS, queue_bytes=1_100_000)
    long = report(tokens=4096, series=series(4096))
    for _ in range(100):
        emit(emitter, long)
    assert processor._bytes <= 1_100_000
    emitter.shutdown(10)
    kept, lost = counters.get(EXPORTED), counters.get(DROPPED, what="span", why="queue_full")
    assert kept + lost == 100
    assert lost > 0
    assert counters.get(DROPPED, what="series", why="queue_full") == 100 - 5
    assert sorted({span.dropped_events_count for span in received.spans}) == [0, 16]
    assert processor._bytes == 0


def test_requests_of_server_spans_with_long_headers_fit_a_grpc_server(
    report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with grpc_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
        counters = Counters()
        emitter = SpanEmitter(counters)
        assert emitter.processor is not None
        for number in range(1, 201):
            context = SpanContext(1, number, False, TraceFlags(1))
            attributes = {"http.request.header.x-request-id": ("r" * 40_000,)}
            emitter.processor.on_end(
                ReadableSpan("GET", context, resource=RESOURCE, attributes=attributes, start_time=1, end_time=2)
            )
        emitter.shutdown(20)
        assert counters.get(EXPORTED) == len(received.spans) == 200
        assert len(received.bodies) == 3


@pytest.mark.parametrize("wire", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(("poisonous", "apart"), [(1, 70), (3, 70), (12, 16)])
def test_a_poisonous_span_costs_itself_only(
    report: Make, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]], wire: str,
    poisonous: int, apart: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", wire)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    bad = [f"venom{number}" for number in range(poisonous)]
    with http_receiver() if wire != "grpc" else grpc_receiver() as received:
        received.poison = b"venom"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        counters = Counters()
        emitter = SpanEmitter(counters)
        for number in range(200):
            request_id = bad.pop() if number % apart == apart // 2 - 2 and bad else f"r{number}"
            emit(emitter, report(series=None, request_id=request_id))
        assert emitter.processor is not None
        assert emitter.processor.force_flush(20_000)
        emitter.shutdown(10)
        assert counters.get(DROPPED, what="span", why="export_failed") == poisonous
        assert counters.get(EXPORTED) == len(received.spans) == 200 - poisonous
        assert len(received.times) <= 1 + poisonous * 16
        (line,) = (record.getMessage() for record in logged())
        assert f"refused {poisonous} of 200 spans permanently" in line


@pytest.mark.parametrize(("status", "tries"), [(400, 15), (413, 15), (401, 1), (403, 1), (404, 1), (500, 1)])
def test_a_backend_that_refuses_everything_is_not_hammered(
    received: Received, report: Make, monkeypatch: pytest.MonkeyPatch, status: int, tries: int
) -> None:
    received.does = Behaviour(status=status)
    counters = Counters()
    emitter = SpanEmitter(counters)
    assert emitter.processor is not None
    monkeypatch.setattr(emitter.processor, "_delay_s", 60.0)
    for _ in range(256):
        emit(emitter, report(series=None))
    assert emitter.processor.force_flush(20_000)
    assert counters.get(DROPPED, what="span", why="export_failed") == 256
    assert len(received.times) == tries
    for _ in range(256):
        emit(emitter, report(series=None))
    assert emitter.processor.force_flush(20_000)
    assert len(received.times) - tries <= 3
    emitter.shutdown(5)


def test_a_backend_that_takes_smaller_requests_gets_smaller_ones(
    received: Received, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    received.most_bytes = 400_000
    counters = Counters()
    emitter = SpanEmitter(counters)
    assert emitter.processor is not None
    monkeypatch.setattr(emitter.processor, "_delay_s", 60.0)
    long = report(tokens=1000, series=series(1000))
    for _ in range(60):
        emit(emitter, long)
    assert emitter.processor.force_flush(20_000)
    before = len(received.times)
    for _ in range(14):
        emit(emitter, long)
    assert emitter.processor.force_flush(20_000)
    emitter.shutdown(5)
    assert counters.get(EXPORTED) == len(received.spans) == 74
    assert len(received.times) - before <= 4, "it remembers"


def test_flushing_waits_for_all_and_no_longer_than_it_may(received: Received, report: Make) -> None:
    emitter = SpanEmitter(Counters())
    assert emitter.processor is not None
    emit(emitter, report())
    assert emitter.processor.force_flush(10_000)
    assert len(received.spans) == 1
    received.does = Behaviour(delay_s=1.0)
    emit(emitter, report())
    start = time.monotonic()
    assert not emitter.processor.force_flush(100)
    assert time.monotonic() - start < 0.9
    emitter.shutdown(5)
    assert not emitter.processor.put(encode_readable(sdk_span(report()))), "after its end"


def _child(emitter: SpanEmitter, report: RequestReport) -> None:
    emit(emitter, report)
    emitter.shutdown(5)


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_sends_its_own_spans_and_none_of_the_parents(
    received: Received, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    emitter = SpanEmitter(Counters())
    emit(emitter, report(request_id="parent"))
    time.sleep(0.05)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(emitter, report(request_id="child")))
    child.start()
    child.join(15)
    assert child.exitcode == 0
    assert len(received.spans) == 1
    emitter.shutdown(5)
    assert len({span.span_id for span in received.spans}) == 2


def test_the_sdks_own_exporters_take_the_sdks_own_spans_as_ever(received: Received, report: Make) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    emitter = SpanEmitter(Counters())  # has had a hand in the exporter's module
    exporter = OTLPSpanExporter(endpoint=f"{received.endpoint}/v1/traces")
    exporter.export([sdk_span(report())])
    exporter.shutdown()
    emitter.shutdown(1)
    (body,) = received.bodies
    assert ExportTraceServiceRequest.FromString(body) == encode_spans([sdk_span(report())])


def test_sequences_of_a_caller_are_its_children_with_its_trace_state(received: Received, report: Make) -> None:
    emitter = SpanEmitter(Counters())
    emit(emitter, report(admission=Admission(parent=CALLER)))
    emitter.shutdown(5)
    (span,) = received.spans
    assert (span.trace_state, span.parent_span_id.hex()) == ("vendor=1,other=2", f"{0xDEF:016x}")


BATCH = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(("batch", "linked"), [(BATCH, True), ("00-0-0-01", False), (None, False)])
def test_the_engines_span_of_a_batch_is_a_link_and_no_parent(
    received: Received, report: Make, batch: str | None, linked: bool
) -> None:
    made = report()
    object.__setattr__(made.admitted, "batch", batch)
    emitter = SpanEmitter(Counters())
    emit(emitter, made)
    emit(emitter, report())
    emitter.shutdown(5)
    first, second = received.spans
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in first.links] == (
        [(BATCH[3:35], BATCH[36:52])] if linked else []
    )
    assert first.parent_span_id == b""
    assert not second.links, "a message that is used again keeps no link"
