"""Mutated OTLP answers, over HTTP and gRPC: each span has exactly one fate, and what comes later is delivered."""

from __future__ import annotations

import gzip
import logging
import random
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from tests.conftest import emit
from tests.harness.faulty import raw_server, read_request

from corevital.guard import faults
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.emitter import SpanEmitter

SEED = 20_261_130
SECONDS = 6.0
"""Of each protocol."""
DROPPED, EXPORTED = "corevital.telemetry.dropped", "corevital.telemetry.exported"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
STATUS = (
    "200 OK", "200", "202 A", "204 No", "206 P", "301 M", "302 F", "304 N", "307 T", "400 B", "401 U", "403 F", "404 N",
    "413 T", "418 I", "429 T", "500 I", "502 B", "503 S", "504 G", "100 C", "101 S", "103 E", "199 X", "999 Y", "20",
    "-1 No", "2e2 OK", "200 \x1b[2J\x07", "", "600 " + "x" * 70_000,
)  # fmt: skip
KINDS = (
    "application/x-protobuf", "application/json", "text/html", "text/plain; charset=utf-8", "", "\x00\x01",
    "APPLICATION/X-PROTOBUF", "application/x-protobuf; a=b", "application/grpc",
)  # fmt: skip
ENCODINGS = ("", "gzip", "deflate", "br", "identity", "gzip, gzip", "GZIP", "x")
WAITS = (
    "0", "0.01", "-1", "inf", "nan", "1e9", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT",
    "soon", "\t", "Mon, 01 Jan 0001 00:00:00 -0000", "٣",
)  # fmt: skip


def body_of(chance: random.Random) -> bytes:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = chance.choice((0, 1, -1, 5, 2**62, -(2**63)))
    response.partial_success.error_message = chance.choice(("", "too old", "a\nb\x1b[31m\u2028", "x" * 50_000))
    body = chance.choice(
        (b"", response.SerializeToString(), b"{}", b"null", b"[]", b'{"partialSuccess":{}}', b'{"partialSuccess":7}',
         b'{"partialSuccess":{"rejectedSpans":"' + b"9" * 30 + b'"}}', b"<html>login</html>", chance.randbytes(200),
         b"[" * 20_000, bytes(100_000))
    )  # fmt: skip
    if body and chance.random() < 0.2:
        at = chance.randrange(len(body))
        body = body[:at] + chance.randbytes(3) + body[at + 1 :]
    return body


def answer_of(chance: random.Random) -> bytes:
    """An HTTP answer, right or wrong in any of its parts."""
    body, lines = body_of(chance), [f"HTTP/1.{chance.choice('0117')} {chance.choice(STATUS)}"]
    encoding = chance.choice(ENCODINGS) if chance.random() < 0.3 else ""
    if encoding:
        lines.append(f"Content-Encoding: {encoding}")
        encoders: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
        body = encoders.get(encoding.lower(), lambda data: data)(body)
    if chance.random() < 0.8:
        lines.append(f"Content-Type: {chance.choice(KINDS)}")
    if chance.random() < 0.3:
        lines.append(f"Retry-After: {chance.choice(WAITS)}")
    if chance.random() < 0.1:
        lines.append(f"Location: {chance.choice(('/login', 'http://127.0.0.1:9/', '//[', chr(0)))}")
    if chance.random() < 0.1:
        lines += ["no colon at all", ": no name", "x" * chance.choice((10, 70_000))]
    if chance.random() < 0.05:
        lines += [f"X-{number}: y" for number in range(200)]
    framing = chance.random()
    if framing < 0.7:
        lines.append(f"Content-Length: {len(body)}")
    elif framing < 0.8:
        lines.append(f"Content-Length: {chance.choice(('-1', '0', 'x', '99999999', '9' * 30, '1, 2'))}")
    elif framing < 0.9:
        lines.append("Transfer-Encoding: chunked")
        size = chance.choice((f"{len(body):x}", "ffffffffffffffff", "-1", "zz", ""))
        body = f"{size}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    data = "\r\n".join([*lines, "", ""]).encode(errors="replace") + body
    if chance.random() < 0.1:
        data = data[: chance.randrange(len(data) + 1)]
    if chance.random() < 0.1:
        at = chance.randrange(len(data)) if data else 0
        data = data[:at] + chance.randbytes(5) + data[at + 5 :]
    return data


class Run:
    """Spans sent until the time is over, and their fates."""

    def __init__(self, report: Callable[..., RequestReport], monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
        for name in ("TRACES_ENDPOINT", "HEADERS", "COMPRESSION", "CERTIFICATE"):
            monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "5")
        monkeypatch.setattr("corevital_otel.otlp.delivery._PAUSES_S", (0.001, 0.002))
        monkeypatch.setattr("corevital_otel.otlp.answers.LONGEST_WAIT_S", 0.01)
        self.fates: Counter[str] = Counter()
        self.counters = Counters()
        self.emitter = SpanEmitter(self.counters, fate=lambda ids, done: self.fates.update(ids))
        assert self.emitter._delivery is not None
        self.emitter._delivery.patience_s = 0.05
        self._report = report
        self.sent: list[str] = []

    def send(self, count: int) -> None:
        self.sent += [emit(self.emitter, self._report(series=None)).span_id for _ in range(count)]

    def until(self, end: float) -> None:
        chance = random.Random(SEED)
        while time.monotonic() < end:
            self.send(chance.randrange(1, 6))
            time.sleep(0.02)

    def check(self, before: int, logged: list[logging.LogRecord]) -> None:
        """Good answers from here on: what is sent now arrives."""
        assert self.emitter.processor is not None
        assert self.emitter.processor.force_flush(20_000)
        exported = self.counters.get(EXPORTED)
        self.send(7)
        assert self.emitter.processor.force_flush(20_000)
        assert self.counters.get(EXPORTED) == exported + 7
        self.emitter.shutdown(5)
        assert self.counters.get(EXPORTED) + self.counters.get(DROPPED, what="span") == len(self.sent)
        assert self.fates == Counter(self.sent)
        assert faults() == before
        for record in logged:
            assert record.exc_info is None
            assert len(record.getMessage()) < 1_000
            assert record.getMessage().isprintable()


def resident_mb() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def test_over_http(
    report: Callable[..., RequestReport],
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[], list[logging.LogRecord]],
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    chance, lock, good, answers = random.Random(SEED), threading.Lock(), threading.Event(), []

    def talk(taken: socket.socket) -> None:
        while read_request(taken):
            with lock:
                data = GOOD if good.is_set() else answer_of(chance)
                answers.append(len(data))
            taken.sendall(data)
            if data is not GOOD and (len(data) % 3 == 0 or not data.endswith(b"\n")):
                return

    before, memory = faults(), resident_mb()
    with raw_server(talk) as endpoint:
        run = Run(report, monkeypatch, endpoint)
        run.until(time.monotonic() + SECONDS)
        good.set()
        run.check(before, logged())
    assert len(answers) > 20
    assert resident_mb() - memory < 100


def test_over_grpc(
    report: Callable[..., RequestReport],
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[], list[logging.LogRecord]],
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    chance, good, asked = random.Random(SEED), threading.Event(), []

    def export(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked.append(len(request))
        if good.is_set():
            return b""
        kind = chance.random()
        if kind < 0.4:
            return body_of(chance)
        info = RetryInfo()
        info.retry_delay.seconds = chance.choice((0, -1, 2**62, -(2**63)))
        info.retry_delay.nanos = chance.choice((0, 1, -(2**31), 2**31 - 1))
        blob = chance.choice((info.SerializeToString(), b"", chance.randbytes(30)))
        key = chance.choice(("google.rpc.retryinfo-bin", "grpc-status-details-bin", "other-bin"))
        if chance.random() < 0.6:
            context.set_trailing_metadata([(key, blob)])
        code = chance.choice([code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
        context.abort(code, chance.choice(("", "no", "a\nb\x1b[31m\u2028", "x" * 5_000)))
        raise AssertionError

    class Raw(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(export)

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Raw(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    before, memory = faults(), resident_mb()
    with suppress(ValueError):
        logging.getLogger("grpc._server").setLevel(logging.CRITICAL)  # it logs what its own handler aborts
    try:
        run = Run(report, monkeypatch, f"http://127.0.0.1:{port}")
        run.until(time.monotonic() + SECONDS)
        good.set()
        run.check(before, logged())
    finally:
        server.stop(0.5).wait()
    assert len(asked) > 20
    assert resident_mb() - memory < 100
