"""A real OpenTelemetry collector (rotel) that receives every signal by gRPC and HTTP, and a sink behind it."""

from __future__ import annotations

import gzip
import importlib.metadata
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from tests.harness.otlp_metrics import MetricStore
from tests.harness.processes import Group, environment, free_port


@dataclass(frozen=True)
class Span:
    """A span as the collector passed it on."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    resource: dict[str, Any]
    scope: str = ""
    trace_state: str = ""
    status: int = 0

    @property
    def series(self) -> list[dict[str, Any]]:
        """Attributes of its ``corevital.series`` events."""
        return [attributes for name, attributes in self.events if name == "corevital.series"]


@dataclass(frozen=True)
class Log:
    """A log record as the collector passed it on."""

    event_name: str
    severity: str
    number: int
    trace_id: str
    span_id: str
    flags: int
    time_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope: str


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


class Sink:
    """Where the collector sends to: an OTLP/HTTP server that keeps spans, metrics and log records."""

    def __init__(self, forward: str | None = None) -> None:
        self.metrics = MetricStore()
        self.spans: list[Span] = []  # of requests: ours
        self.others: list[Span] = []  # of HTTP, and the engine's own
        self.logs: list[Log] = []
        self.received = b""  # every byte of every request
        self.asked: list[tuple[str, dict[str, str]]] = []  # path and headers of each request
        self.times: Counter[str] = Counter()  # how often each span arrived, by its id
        self._lock = threading.Lock()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sink.received += body
                sink.asked.append((self.path, dict(self.headers)))
                if self.path.endswith("/v1/metrics"):
                    sink.metrics.take(body)
                elif self.path.endswith("/v1/logs"):
                    sink.logs += _logs(ExportLogsServiceRequest.FromString(body))
                else:
                    if forward is not None:
                        headers = {"Content-Type": "application/x-protobuf"}
                        httpx.post(forward, content=body, headers=headers, timeout=30).raise_for_status()
                    sink.take(_spans(ExportTraceServiceRequest.FromString(body)))
                body = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, spans: list[Span]) -> None:
        """Keep what is new: OTLP is delivered at least once, and the collector repeats a send whose answer is late."""
        with self._lock:
            for span in spans:
                self.times[span.span_id] += 1
                if self.times[span.span_id] == 1:
                    (self.spans if span.scope == "corevital" else self.others).append(span)

    def wait_for_logs(self, count: int, timeout_s: float = 30.0) -> list[Log]:
        """At least ``count`` log records, or those that arrived by the timeout."""
        deadline = time.monotonic() + timeout_s
        while len(self.logs) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.0)  # one too many would come now
        return list(self.logs)

    def wait_for(self, count: int, timeout_s: float = 30.0) -> list[Span]:
        """At least ``count`` spans, or those that arrived by the timeout."""
        deadline = time.monotonic() + timeout_s
        while len(self.spans) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.0)  # one span too many would come now
        return list(self.spans)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        Span(
            name=span.name,
            kind=span.kind,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            attributes=_attributes(span.attributes),
            events=[(event.name, _attributes(event.attributes)) for event in span.events],
            resource=_attributes(group.resource.attributes),
            scope=scope.scope.name,
            trace_state=span.trace_state,
            status=span.status.code,
        )
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _logs(request: ExportLogsServiceRequest) -> list[Log]:
    return [
        Log(
            event_name=record.event_name,
            severity=record.severity_text,
            number=record.severity_number,
            trace_id=record.trace_id.hex(),
            span_id=record.span_id.hex(),
            flags=record.flags,
            time_ns=record.time_unix_nano,
            attributes=_attributes(record.attributes),
            resource=_attributes(group.resource.attributes),
            scope=scope.scope.name,
        )
        for group in request.resource_logs
        for scope in group.scope_logs
        for record in scope.log_records
    ]


class Collector:
    """rotel, and the spans that came through it.

    Args:
        folder: for its log.
        forward: an OTLP/HTTP URL that what it passes on goes to besides, byte for byte: it knows one exporter a signal.
    """

    def __init__(self, folder: Path, forward: str | None = None) -> None:
        self.sink = Sink(forward)
        self._folder = folder
        self._ports = grpc, http = free_port(), free_port()
        self.grpc, self.http = f"http://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}"

    def start(self) -> None:
        """Start it, on the same ports each time."""
        agent = next(file for file in importlib.metadata.files("rotel") or () if file.name == "rotel-agent").locate()
        grpc, http = self._ports
        command = [str(agent), "start", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"]
        command += ["--otlp-http-endpoint", f"127.0.0.1:{http}", "--traces-batch-timeout", "200ms"]
        command += ["--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint"]
        command += [f"http://127.0.0.1:{self.sink.port}", "--otlp-exporter-request-timeout", "30s"]
        command += ["--metrics-batch-timeout", "200ms", "--logs-batch-timeout", "200ms"]
        self._group = Group(command, environment({}), self._folder, self._folder / "rotel.log")
        for port in self._ports:
            _wait_for_port(port, self._group)

    def stop(self) -> None:
        """Stop it; it passes on what it has received first."""
        self._group.stop(10.0)


@contextmanager
def collector(folder: Path, forward: str | None = None) -> Iterator[Collector]:
    """A running collector; see :class:`Collector`."""
    running = Collector(folder, forward)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        running.sink.close()


def _wait_for_port(port: int, group: Group, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if group.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the collector did not start:\n{group.text()[-2000:]}") from None
            time.sleep(0.1)
