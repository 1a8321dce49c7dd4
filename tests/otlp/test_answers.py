"""What counts as a delivery, and how much of an answer is read, for how long."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from tests.conftest import emit
from tests.harness.faulty import certificate, raw_server, read_request

from corevital_otel.counters import Counters
from corevital_otel.otlp.answers import LONGEST_WAIT_S, accepted, retry_after_s, retry_info_s
from corevital_otel.report import RequestReport
from corevital_otel.spans.emitter import SpanEmitter

Make = Callable[..., RequestReport]
DROPPED, EXPORTED = "corevital.telemetry.dropped", "corevital.telemetry.exported"
PROTOBUF = "application/x-protobuf"
PARTIAL = ExportTraceServiceResponse()
PARTIAL.partial_success.rejected_spans = 0
PARTIAL.partial_success.error_message = "slow down\n\x1b[31m"


def answer(status: str, kind: str | None, body: bytes, *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *more]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch, report: Make) -> Iterator[Callable[..., Counters]]:
    made: list[SpanEmitter] = []
    for name in ("TRACES_ENDPOINT", "HEADERS", "CERTIFICATE", "COMPRESSION"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setattr("corevital_otel.otlp.delivery._PAUSES_S", (0.05, 0.1))

    def send(endpoint: str, timeout_s: str = "5") -> Counters:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", timeout_s)
        counters = Counters()
        made.append(SpanEmitter(counters))
        emit(made[-1], report())
        return counters

    yield send
    for each in made:
        each.shutdown(2)


@pytest.fixture
def log_lines(logged: Callable[[], list[logging.LogRecord]]) -> Callable[[], list[str]]:
    return lambda: [record.getMessage() for record in logged()]


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def fixed(data: bytes) -> Callable[[socket.socket], None]:
    def talk(taken: socket.socket) -> None:
        while read_request(taken):
            taken.sendall(data)

    return talk


@pytest.mark.parametrize(
    "data",
    [
        answer("200 OK", None, b""),
        answer("200 OK", "text/plain; charset=utf-8", b""),
        answer("202 Accepted", None, b""),
        answer("200 OK", PROTOBUF, b""),
        answer("200 OK", PROTOBUF, PARTIAL.SerializeToString()),
        answer("200 OK", "application/json", b"{}"),
        answer("200 OK", "application/json; charset=utf-8", b"null"),
        answer("200 OK", "application/json", b'{"partialSuccess": {"rejectedSpans": "0"}, "later": 1}'),
        answer("200 OK", "application/json; charset=utf-8", b'{"message": "OK"}'),  # Langfuse
        answer("200 OK", "application/json", b'{"name": "otel-ingestion-job", "id": "7", "data": {"payload": {}}}'),
        answer("207 Multi-Status", "application/json", b'{"successes": [], "errors": []}'),  # an older Langfuse
        answer("200 OK", PROTOBUF, gzip.compress(PARTIAL.SerializeToString()), "Content-Encoding: gzip"),
        answer("200 OK", PROTOBUF, zlib.compress(PARTIAL.SerializeToString()), "Content-Encoding: deflate"),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + answer("200 OK", None, b""),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_an_otlp_answer_or_nothing_at_all_is_a_delivery(sender: Callable[..., Counters], data: bytes) -> None:
    with raw_server(fixed(data)) as endpoint:
        counters = sender(endpoint)
        wait_for(lambda: counters.get(EXPORTED) == 1)
        assert counters.get(DROPPED) == 0


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (answer("302 Found", None, b"", "Location: /login"), "302: is a login in between"),
        (answer("302 Found", None, b"", "Location: http://127.0.0.1:9/"), "302: is a login in between"),
        (answer("307 Temporary Redirect", None, b"", "Location: /v1/traces"), "307: is a login in between"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "304: is a login in between"),
        (answer("200 OK", "text/html", b"<html>Sign in</html>"), "text/html, which is not an OTLP answer"),
        (answer("200 OK", "text/html", b""), "text/html, which is not an OTLP answer"),
        (answer("200 OK", "text/plain", b"ok"), "text/plain, which is not an OTLP answer"),
        (answer("200 OK", None, b"ok"), "no Content-Type"),
        (answer("200 OK", PROTOBUF, b"<html>"), "not an OTLP answer"),
        (answer("200 OK", PROTOBUF, b"\x0a\xff\xff\xff\xff"), "not an OTLP answer"),
        (answer("200 OK", "application/json", b'{"error": "partial login"}'), "not an OTLP answer"),
        (answer("200 OK", "application/json", b'{"errors": ["denied"]}'), "not an OTLP answer"),
        (answer("200 OK", "application/json", b'{"code": 16, "message": "unauthenticated"}'), "not an OTLP answer"),
        (answer("200 OK", "application/json", b'{"detail": "Not authenticated"}'), "not an OTLP answer"),
        (answer("200 OK", "application/json", b'{"success": false}'), "not an OTLP answer"),
        (answer("200 OK", "application/json", b'{"Status": "error", "message": "quota"}'), "not an OTLP answer"),
        (answer("200 OK", PROTOBUF, b"\x08\x10\x12\x06denied"), "not an OTLP answer"),  # a google.rpc.Status
        (answer("200 OK", "application/json", b"[" * 50_000), "not an OTLP answer"),
        (answer("200 OK", "application/json", b'{"partialSuccess": {"rejectedSpans": "all"}}'), "not an OTLP answer"),
        (answer("200 OK", PROTOBUF, b"not gzip", "Content-Encoding: gzip"), "not an OTLP answer"),
        (answer("200 OK", PROTOBUF, b"x", "Content-Encoding: br"), "not an OTLP answer"),
        (answer("200 OK", PROTOBUF, bytes(70_000)), "not an OTLP answer"),
        (answer("200 OK", PROTOBUF, gzip.compress(bytes(50 << 20)), "Content-Encoding: gzip"), "not an OTLP answer"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "HTTP 101"),
        (answer("404 \x1b[31mNo\x07", "text/html", b"<html>"), r"HTTP 404 \x1b[31mNo\x07"),
    ],
)
def test_anything_else_is_logged_with_its_cause_and_counted(
    sender: Callable[..., Counters], log_lines: Callable[[], list[str]], data: bytes, cause: str
) -> None:
    with raw_server(fixed(data)) as endpoint:
        counters = sender(endpoint)
        wait_for(lambda: counters.get(DROPPED, what="span", why="export_failed") == 1)
        assert counters.get(EXPORTED) == 0
        (line,) = log_lines()
        assert cause in line


def test_the_fragments_of_an_answer_are_read_to_its_end(sender: Callable[..., Counters]) -> None:
    def talk(taken: socket.socket) -> None:
        while read_request(taken):
            data = PARTIAL.SerializeToString()
            taken.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {PROTOBUF}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            for at in range(len(data)):
                taken.sendall(b"1\r\n" + data[at : at + 1] + b"\r\n")
            taken.sendall(b"0\r\n\r\n")

    with raw_server(talk) as endpoint:
        counters = sender(endpoint)
        wait_for(lambda: counters.get(EXPORTED) == 1)


def trickling(start: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    def talk(taken: socket.socket) -> None:
        read_request(taken)
        taken.sendall(start)
        while True:
            time.sleep(0.2)
            taken.sendall(piece)

    return talk


def handshake(taken: socket.socket) -> None:
    taken.sendall(b"\x16\x03\x03\x3e\x80")  # the record of a handshake message of 16,000 bytes
    while True:
        time.sleep(0.2)
        taken.sendall(b"\0")


def endless(taken: socket.socket) -> None:
    read_request(taken)
    taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    while True:
        taken.sendall(bytes(1 << 20))


HUNG: dict[str, Callable[[socket.socket], None]] = {
    "nothing": lambda taken: time.sleep(5),
    "body": trickling(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "chunks": trickling(b"HTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "headers": trickling(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "a line": trickling(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    "continue": trickling(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("what", HUNG)
def test_an_answer_that_does_not_end_is_a_failed_try_within_the_timeout(
    sender: Callable[..., Counters], log_lines: Callable[[], list[str]], what: str
) -> None:
    with raw_server(HUNG[what]) as endpoint:
        start = time.monotonic()
        sender(endpoint, "1")
        wait_for(lambda: bool(log_lines()))
        assert time.monotonic() - start < 1 + 1.5
        assert "no complete answer within 1 s" in log_lines()[0]


def test_a_tls_handshake_that_trickles_is_a_failed_try_within_the_timeout(
    sender: Callable[..., Counters], log_lines: Callable[[], list[str]]
) -> None:
    with raw_server(handshake) as endpoint:
        start = time.monotonic()
        sender(endpoint.replace("http://", "https://"), "1")
        wait_for(lambda: bool(log_lines()))
        assert time.monotonic() - start < 1 + 1.5
        assert "no complete answer within 1 s" in log_lines()[0]


def test_a_trickle_under_tls_ends_with_the_timeout(
    sender: Callable[..., Counters], log_lines: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificate(tmp_path, "server")
    with raw_server(HUNG["body"], made.server()) as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(made.certificate))
        start = time.monotonic()
        sender(endpoint, "1")
        wait_for(lambda: bool(log_lines()))
        assert time.monotonic() - start < 1 + 1.5
        assert "no complete answer within 1 s" in log_lines()[0]


def test_a_hanging_grpc_server_is_reported_within_the_timeout(
    sender: Callable[..., Counters], log_lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with raw_server(HUNG["nothing"]) as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        start = time.monotonic()
        sender(endpoint, "1")
        wait_for(lambda: bool(log_lines()))
        assert time.monotonic() - start < 1 + 1.5
        assert "DEADLINE_EXCEEDED" in log_lines()[0]


@pytest.mark.parametrize(
    ("data", "exported"),
    [
        (answer("200 OK", None, b""), 1),
        (answer("302 Found", None, b"", "Location: /login"), 0),
        (answer("200 OK", PROTOBUF, gzip.compress(bytes(50 << 20)), "Content-Encoding: gzip"), 0),
    ],
)
def test_answers_to_the_users_own_session_are_read_too(
    sender: Callable[..., Counters], monkeypatch: pytest.MonkeyPatch, data: bytes, exported: int
) -> None:
    monkeypatch.setattr("corevital_otel.otlp.exporter.http_session", lambda signal, heard: requests.Session())
    with raw_server(fixed(data)) as endpoint:
        counters = sender(endpoint)
        wait_for(lambda: counters.get(EXPORTED) + counters.get(DROPPED) == 1)
        assert counters.get(EXPORTED) == exported


def test_an_endless_body_is_read_to_a_bound(sender: Callable[..., Counters]) -> None:
    with raw_server(endless) as endpoint:
        counters = sender(endpoint)
        start = time.monotonic()
        wait_for(lambda: counters.get(DROPPED, what="span", why="export_failed") == 1)
        assert time.monotonic() - start < 4, "the timeout had to end it"


def test_a_kept_connection_that_the_backend_has_closed_is_not_a_failure(
    sender: Callable[..., Counters], log_lines: Callable[[], list[str]], report: Make
) -> None:
    seen: list[int] = []

    def talk(taken: socket.socket) -> None:
        if read_request(taken):
            seen.append(1)
            taken.sendall(answer("200 OK", None, b""))  # and closes, without announcing it

    with raw_server(talk) as endpoint:
        counters = sender(endpoint)
        wait_for(lambda: counters.get(EXPORTED) == 1)
        time.sleep(0.1)
        again = SpanEmitter(counters)
        for number in range(2, 5):
            emit(again, report())
            wait_for(lambda number=number: counters.get(EXPORTED) == number)
        again.shutdown(2)
    assert log_lines() == []


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0), ("5", 5), (" 7 ", 7), ("1.5", 1.5), ("1e9", LONGEST_WAIT_S), ("9" * 5000, LONGEST_WAIT_S),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_WAIT_S), ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 -0000", 0), ("-5", None), ("inf", None), ("nan", None), ("soon", None), ("", None),
        (None, None), ("Fri, 99 Foo 2020", None), ("٣", 3),
    ],
)  # fmt: skip
def test_a_wait_that_a_backend_asks_for_is_within_bounds(header: str | None, seconds: float | None) -> None:
    found = retry_after_s(header)
    assert found == (None if seconds is None else pytest.approx(seconds))


def info(seconds: int = 0, nanos: int = 0) -> bytes:
    made = RetryInfo()
    made.retry_delay.seconds, made.retry_delay.nanos = seconds, nanos
    return made.SerializeToString()


def details(data: bytes) -> bytes:
    made = Status(code=8)
    made.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=data)
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("metadata", "seconds"),
    [
        ([("google.rpc.retryinfo-bin", info(3, 500_000_000))], 3.5),
        ([("google.rpc.retryinfo-bin", info(-3))], 0),
        ([("google.rpc.retryinfo-bin", info(2**62))], LONGEST_WAIT_S),
        ([("google.rpc.retryinfo-bin", info(0, -(2**31)))], 0),
        ([("google.rpc.retryinfo-bin", b"")], 0),
        ([("google.rpc.retryinfo-bin", b"\xff\xff\xff")], None),
        ([("google.rpc.retryinfo-bin", "text")], None),
        ([("grpc-status-details-bin", details(info(4)))], 4),
        ([("grpc-status-details-bin", details(b"\xff"))], None),
        ([("grpc-status-details-bin", b"\xff")], None),
        ([("other", b"x")], None),
        ([], None),
    ],
)
def test_any_retry_info_is_read(metadata: list[tuple[str, bytes]], seconds: float | None) -> None:
    assert retry_info_s(metadata) == seconds


@pytest.mark.parametrize("rejected", [-1, -(2**63), 2**62])
def test_odd_counts_of_rejected_spans_are_clamped(
    sender: Callable[..., Counters], log_lines: Callable[[], list[str]], rejected: int
) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    assert accepted(response).rejected >= 0
    with raw_server(fixed(answer("200 OK", PROTOBUF, response.SerializeToString()))) as endpoint:
        counters = sender(endpoint)
        wait_for(lambda: counters.get(EXPORTED) + counters.get(DROPPED) == 1)
        assert counters.get(EXPORTED) == (rejected < 0)
        assert [("no reason given" in line) for line in log_lines()] == [True] * (rejected > 0)


def test_a_reason_is_one_line_of_bounded_length() -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.error_message = "a\n\x1b[2J" + "x" * (10 << 20)
    found = accepted(response).message
    assert len(found) < 450
    assert found.isprintable()
    assert json.dumps(found)


def test_no_thread_is_left_of_tries_that_were_cut_off(sender: Callable[..., Counters]) -> None:
    with raw_server(HUNG["headers"]) as endpoint:
        counters = sender(endpoint, "0.2")
        time.sleep(1.5)
        assert sum(thread.name == "corevital-otlp-timeout" for thread in threading.enumerate()) <= 1
        assert counters.get(EXPORTED) == 0
