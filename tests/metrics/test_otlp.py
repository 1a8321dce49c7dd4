"""Metrics over OTLP: where to, what arrives, and what is logged if nothing does."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from tests.harness.faulty import certificate, http_receiver, raw_server, read_request
from tests.harness.otlp_server import OtlpServer

from corevital_otel.counters import Counters
from corevital_otel.errors import SettingsError
from corevital_otel.metrics.instruments import INSTRUMENTS
from corevital_otel.metrics.otlp import Otlp
from corevital_otel.otlp.variables import endpoint_of, protocol_of
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings

Logged = Callable[[], list[logging.LogRecord]]
TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
MODEL = {"gen_ai.request.model": "tiny"}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "METRICS_ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "METRICS_PROTOCOL", "TIMEOUT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SDK_DISABLED", "OTEL_METRICS_EXPORTER", "OTEL_METRIC_EXPORT_INTERVAL"):
        monkeypatch.delenv(name, raising=False)


class Receiver(OtlpServer):
    """Keeps the last value of each metric."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, Metric] = {}

    def take(self, body: bytes) -> None:
        """See :class:`OtlpServer`."""
        for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            self.metrics |= {metric.name: metric for scope in group.scope_metrics for metric in scope.metrics}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver().as_endpoint(monkeypatch) as running:
        yield running


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "http://c:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m"}, "http://m"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRICS_EXPORTER": "none"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRICS_EXPORTER": "prometheus"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRICS_EXPORTER": "prometheus, otlp"}, "http://c"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRICS_EXPORTER": ""}, "http://c"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_the_standard_variables_say_where_to(
    env: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert endpoint_of(os.environ, "METRICS") == expected


def test_a_wrong_protocol_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json")
    with pytest.raises(SettingsError, match=r"METRICS_PROTOCOL='http/json' is not allowed: use one of grpc, http/prot"):
        protocol_of(os.environ, "METRICS")


def test_a_wrong_interval_is_one_line_and_loses_no_span(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, logged: Logged, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "0")
    hub = Hub(Settings(db=tmp_path / "corevital.db"))
    hub.start()
    hub.close()
    (log_lines,) = logged()
    assert "OTEL_" in log_lines.getMessage()
    assert "metrics are on /metrics only" in log_lines.getMessage()


def test_without_an_endpoint_there_is_no_exporter_and_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    hub = Hub(Settings(db=tmp_path / "corevital.db"))
    hub.start()
    names = {thread.name for thread in set(threading.enumerate()) - before}
    hub.close()
    assert names == {"corevital-hub", "corevital-store"}


def test_what_was_put_in_arrives_with_its_exemplar(receiver: Receiver) -> None:
    counters = Counters()
    output = Otlp(Resource.create(), counters)
    span = SpanContext(TRACE, 7, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    context = trace.set_span_in_context(NonRecordingSpan(span), Context())
    output.put(INSTRUMENTS["corevital.risk_score"], 0.42, {**MODEL, "basis": "prior"}, context)
    output.put(INSTRUMENTS["corevital.tokens"], 3, MODEL, Context())
    output.put(INSTRUMENTS["corevital.tokens"], 4, MODEL, Context())
    output.put(INSTRUMENTS["corevital.sequences.running"], 5, MODEL, Context())
    output.close(5.0)
    assert receiver.asked == ["/v1/metrics"]
    (scores,) = receiver.metrics["corevital.risk_score"].histogram.data_points
    assert list(scores.explicit_bounds) == pytest.approx([step / 20 for step in range(1, 21)])
    assert [exemplar.trace_id.hex() for exemplar in scores.exemplars] == [f"{TRACE:032x}"]
    assert receiver.metrics["corevital.tokens"].sum.data_points[0].as_double == 7 or (
        receiver.metrics["corevital.tokens"].sum.data_points[0].as_int == 7
    )
    assert receiver.metrics["corevital.sequences.running"].gauge.data_points[0].as_int == 5
    assert counters.get("corevital.telemetry.exported", signal="metrics") == 3


def test_exponential_histograms_are_there_for_who_wants_them(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    monkeypatch.setenv(variable, "base2_exponential_bucket_histogram")
    output = Otlp(Resource.create(), Counters())
    output.put(INSTRUMENTS["corevital.entropy"], 1.5, MODEL, Context())
    output.close(5.0)
    assert receiver.metrics["corevital.entropy"].WhichOneof("data") == "exponential_histogram"


def test_a_backend_that_refuses_metrics_is_logged_once_with_the_fix(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, logged: Logged
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    receiver.status = 404
    counters = Counters()
    output = Otlp(Resource.create(), counters)
    output.put(INSTRUMENTS["corevital.tokens"], 3, MODEL, Context())
    wait_for(lambda: len(receiver.asked) > 3)
    (log_lines,) = logged()
    assert "OTEL_METRICS_EXPORTER=none" in log_lines.getMessage()
    assert "\n" not in log_lines.getMessage()
    receiver.status = 200
    wait_for(lambda: counters.get("corevital.telemetry.exported", signal="metrics") > 0)
    output.close(5.0)
    assert [record.getMessage().split(" to ")[0] for record in logged()] == [
        "metrics cannot be delivered", "metrics are delivered",
    ]  # fmt: skip
    assert counters.get("corevital.telemetry.dropped", what="metric", why="export_failed") > 0
    assert receiver.metrics["corevital.tokens"].sum.data_points[0].as_int == 3, "nothing is lost, it was only late"


def talking(data: bytes) -> Callable[[socket.socket], None]:
    def talk(taken: socket.socket) -> None:
        while read_request(taken):
            taken.sendall(data)

    return talk


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", "302: is a login in between"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>", "not an OTLP answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1 << 20), "not an OTLP answer"),
        (b"HTTP/1.1 200 OK\r\nX: ", "no complete answer within 0.5 s"),
        (b"HTTP/1.1 503 No\r\nRetry-After: -1e99\r\nContent-Length: 0\r\n\r\n", "HTTP 503"),
    ],
)
def test_only_an_otlp_answer_counts_as_delivered(
    monkeypatch: pytest.MonkeyPatch, logged: Logged, data: bytes, cause: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    with raw_server(talking(data)) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        counters = Counters()
        output = Otlp(Resource.create(), counters)
        output.put(INSTRUMENTS["corevital.tokens"], 3, MODEL, Context())
        wait_for(lambda: counters.get("corevital.telemetry.dropped", what="metric", why="export_failed") > 0)
        output.close(1.0)
    assert cause in logged()[0].getMessage()
    assert counters.get("corevital.telemetry.exported") == 0


@pytest.mark.parametrize(("rejected", "exported"), [(1, 1), (-4, 2), (2**40, 0)])
def test_points_that_a_backend_rejects_are_counted(
    monkeypatch: pytest.MonkeyPatch, logged: Logged, rejected: int, exported: int
) -> None:
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = rejected
    response.partial_success.error_message = "too\nmany"
    body = response.SerializeToString()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: {len(body)}\r\n\r\n"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with raw_server(talking(head.encode() + body)) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        counters = Counters()
        output = Otlp(Resource.create(), counters)
        for name in ("corevital.tokens", "corevital.requests"):
            output.put(INSTRUMENTS[name], 3, MODEL, Context())
        output.close(5.0)
    assert counters.get("corevital.telemetry.exported", signal="metrics") == exported
    assert counters.get("corevital.telemetry.dropped", what="metric", why="rejected") == 2 - exported


@pytest.mark.parametrize("wire", ["grpc", "http/protobuf"])
def test_where_nothing_listens_cause_and_endpoint_are_named_and_no_password(
    monkeypatch: pytest.MonkeyPatch, logged: Logged, wire: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", wire)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{'' if wire == 'grpc' else 'me:secret@'}127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    output = Otlp(Resource.create(), Counters())
    output.put(INSTRUMENTS["corevital.tokens"], 3, MODEL, Context())
    wait_for(lambda: len(logged()) > 0)
    output.close(1.0)
    log_lines = logged()[0].getMessage()
    assert "metrics cannot be delivered to http://127.0.0.1:9 (" in log_lines
    assert "Connection refused" in log_lines
    assert "secret" not in log_lines


def test_the_certificate_of_otel_holds_beside_that_of_all_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = certificate(tmp_path, "server")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(server.certificate))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate(tmp_path, "everyone").certificate))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with http_receiver(server.server()) as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        output = Otlp(Resource.create(), Counters())
        output.put(INSTRUMENTS["corevital.tokens"], 3, MODEL, Context())
        output.close(5.0)
        assert b"corevital.tokens" in received.bodies[0]


def test_an_endpoint_that_hangs_does_not_hold_the_end_up(receiver: Receiver) -> None:
    receiver.delay_s = 3.0
    output = Otlp(Resource.create(), Counters())
    output.put(INSTRUMENTS["corevital.tokens"], 3, MODEL, Context())
    start = time.monotonic()
    output.close(0.3)
    assert time.monotonic() - start < 1.5


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
