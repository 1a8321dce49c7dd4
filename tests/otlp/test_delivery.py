"""Delivery to collectors that refuse, come back, are slow, accept little, or are absent: exact counts and messages."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.trace import SpanContext, TraceFlags
from tests.conftest import emit
from tests.harness.otlp_server import OtlpServer

from corevital_otel.counters import Counters
from corevital_otel.report import Admission, RequestReport, Series
from corevital_otel.settings import SettingsError
from corevital_otel.spans.attributes import span_attributes
from corevital_otel.spans.emitter import SpanEmitter

Make = Callable[..., RequestReport]
DROPPED, EXPORTED = "corevital.telemetry.dropped", "corevital.telemetry.exported"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL", "TIMEOUT", "COMPRESSION"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_SPAN_EVENT_COUNT_LIMIT"):
        monkeypatch.delenv(name, raising=False)


class Receiver(OtlpServer):
    """Keeps spans."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Span] = []

    def take(self, body: bytes) -> None:
        """See :class:`OtlpServer`."""
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        self.spans += [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver().as_endpoint(monkeypatch) as running:
        yield running


@pytest.fixture
def log_lines(logged: Callable[[], list[logging.LogRecord]]) -> Callable[[], list[str]]:
    return lambda: [record.message for record in logged()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def series(tokens: int) -> Series:
    values = np.linspace(0, 1, tokens, dtype=np.float32)
    return Series(entropy=values, surprisal=values, margin=values, topk_mass=values)


def test_a_refusal_and_the_recovery_are_each_logged_once_with_the_cause(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, report: Make, log_lines: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    counters = Counters()
    emitter = SpanEmitter(counters)
    for number, status in enumerate((500, 401, 400), 1):
        receiver.status = status
        emit(emitter, report())
        wait_for(lambda number=number: counters.get(DROPPED, what="span", why="export_failed") == number)
    receiver.status = 200
    for number in range(1, 3):
        emit(emitter, report())
        wait_for(lambda number=number: counters.get(EXPORTED, signal="traces") == number)
    emitter.shutdown(5)
    refused, back = log_lines()
    assert f"cannot be delivered to http://127.0.0.1:{receiver.server.server_port}" in refused
    assert "Internal Server Error" in refused
    assert "requests are unaffected, reports stay in the store" in refused
    assert "are delivered to" in back
    assert len(receiver.spans) == 2


@pytest.mark.parametrize(("wire", "cause"), [("grpc", "UNAVAILABLE"), ("http/protobuf", "Connection refused")])
def test_where_nothing_listens_the_cause_is_named(
    monkeypatch: pytest.MonkeyPatch, report: Make, log_lines: Callable[[], list[str]], wire: str, cause: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", wire)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    counters = Counters()
    emitter = SpanEmitter(counters)
    emit(emitter, report())
    wait_for(lambda: bool(log_lines()))
    emitter.shutdown(3)
    assert counters.get(DROPPED, what="span") == 1
    line = log_lines()[0]
    assert cause in line
    assert "\n" not in line


def test_every_span_is_either_delivered_or_counted_as_lost(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, report: Make, log_lines: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    receiver.delay_s = 0.2
    counters = Counters()
    emitter = SpanEmitter(counters)
    for _ in range(60):
        emit(emitter, report(series=None))
        time.sleep(0.005)
    emitter.shutdown(10)
    assert counters.get(DROPPED, what="span", why="queue_full") > 0
    assert counters.get(EXPORTED) == len(receiver.spans)
    assert counters.get(EXPORTED) + counters.get(DROPPED) == 60
    assert log_lines() == []


def test_a_queue_smaller_than_the_usual_batch_is_obeyed(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    SpanEmitter(Counters()).shutdown(1)


def test_a_grpc_server_with_the_usual_limit_takes_batches_with_long_series(
    monkeypatch: pytest.MonkeyPatch, report: Make
) -> None:
    spans: list[int] = []

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, _: Any) -> trace_service_pb2.ExportTraceServiceResponse:
            spans.extend(len(scope.spans) for group in request.resource_spans for scope in group.scope_spans)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")  # all in one batch
    counters = Counters()
    emitter = SpanEmitter(counters)
    for _ in range(200):
        emit(emitter, report(tokens=1000, series=series(1000)))
    emitter.shutdown(20)
    server.stop(1).wait()
    assert sum(spans) == counters.get(EXPORTED) == 200
    assert len(spans) > 1, "4 MiB would not have held them"


def test_a_very_long_series_is_not_cut(receiver: Receiver, report: Make) -> None:
    emitter = SpanEmitter(Counters())
    emit(emitter, report(tokens=40_000, series=series(40_000), reason="error"))
    emitter.shutdown(10)
    (span,) = receiver.spans
    assert (len(span.events), span.dropped_events_count, span.dropped_attributes_count) == (158, 0, 0)
    assert {event.time_unix_nano for event in span.events} == {span.end_time_unix_nano}
    assert (span.kind, span.status.code) == (Span.SPAN_KIND_INTERNAL, Status.STATUS_CODE_ERROR)


def test_the_users_own_limit_of_events_is_obeyed(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, report: Make
) -> None:
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "2")
    emitter = SpanEmitter(Counters())
    emit(emitter, report(tokens=1000, series=series(1000)))
    emitter.shutdown(10)
    assert len(receiver.spans[0].events) == 2


def test_with_the_sdk_disabled_sequences_of_one_caller_have_different_ids(
    monkeypatch: pytest.MonkeyPatch, report: Make
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    emitter = SpanEmitter(Counters())
    caller = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))
    admission = Admission(parent=caller)
    one, two = (emit(emitter, report(admission=admission, sequence=sequence)) for sequence in range(2))
    assert one.trace_id == two.trace_id == f"{0xABC:032x}"
    assert len({one.span_id, two.span_id, f"{0xDEF:016x}"}) == 3


def test_the_global_provider_is_left_alone(receiver: Receiver, report: Make) -> None:
    before = trace.get_tracer_provider()
    emitter = SpanEmitter(Counters())
    emit(emitter, report())
    emitter.shutdown(5)
    assert trace.get_tracer_provider() is before


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "x"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ],
)
def test_a_wrong_otel_value_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=value) as error:
        SpanEmitter(Counters())
    assert "\n" not in str(error.value)


def test_what_otlp_cannot_carry_is_absent(report: Make) -> None:
    found = report()
    object.__setattr__(found.admitted, "seed", 2**70)
    assert "gen_ai.request.seed" not in span_attributes(found)


EXIT = f"""
import os, socket, sys, time
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from conftest import emit, make_report
from corevital_otel.counters import Counters
from corevital_otel.spans.emitter import SpanEmitter
silent = socket.create_server(("127.0.0.1", 0))
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{{silent.getsockname()[1]}}"
os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = sys.argv[1]
emitter = SpanEmitter(Counters())
for _ in range(600):
    emit(emitter, make_report())
print(time.time(), flush=True)
emitter.shutdown(1.0)
"""


@pytest.mark.parametrize("wire", ["grpc", "http/protobuf"])
def test_a_collector_that_hangs_does_not_hold_the_process_up(wire: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXIT, wire], capture_output=True, text=True, timeout=60, check=True
    )
    assert time.time() - float(done.stdout) < 5
    assert "600 spans could not be delivered" in done.stderr
    assert "Traceback" not in done.stderr
