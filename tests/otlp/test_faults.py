"""Servers that are down, overloaded, wrong or half-hearted: what is sent again, what never is, and what is logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from tests.conftest import emit
from tests.harness.faulty import Behaviour, Received, certificate, grpc_receiver, http_receiver

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.emitter import SpanEmitter

Make = Callable[..., RequestReport]
DROPPED, EXPORTED = "corevital.telemetry.dropped", "corevital.telemetry.exported"


class Sender:
    """An emitter, what it counts, and what it says of each span."""

    def __init__(self, report: Make) -> None:
        self.counters = Counters()
        self.fates: list[tuple[str, bool]] = []
        self.emitter = SpanEmitter(
            self.counters, fate=lambda ids, delivered: self.fates.extend((span_id, delivered) for span_id in ids)
        )
        self._report = report

    def send(self, count: int = 1) -> list[str]:
        return [emit(self.emitter, self._report()).span_id for _ in range(count)]


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch, report: Make) -> Iterator[Callable[[Received, str], Sender]]:
    made: list[Sender] = []
    for name in ("TRACES_ENDPOINT", "HEADERS", "CERTIFICATE", "COMPRESSION"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")  # the SDK's own retries need a second
    monkeypatch.setattr("corevital_otel.otlp.delivery._PAUSES_S", (0.05, 0.1))

    def start(received: Received, wire: str) -> Sender:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", wire)
        made.append(Sender(report))
        return made[-1]

    yield start
    for each in made:
        each.emitter.shutdown(2)


@pytest.fixture
def log_lines(logged: Callable[[], list[logging.LogRecord]]) -> Callable[[], list[str]]:
    return lambda: [record.message for record in logged()]


HTTP, GRPC = "http/protobuf", "grpc"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_over_http_what_may_pass_is_tried_until_it_has(sender: Callable[..., Sender], status: int) -> None:
    with http_receiver() as received:
        received.does = Behaviour(status=status)
        to = sender(received, HTTP)
        ids = to.send(2)
        received.wait_for(lambda: len(received.times) >= 3)
        received.does = Behaviour()
        received.wait_for(lambda: to.counters.get(EXPORTED) == 2)
        assert to.counters.get(DROPPED) == 0
        assert sorted(to.fates) == sorted((span_id, True) for span_id in ids)
        assert len(received.spans) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500])
def test_over_http_what_is_permanent_is_sent_once(sender: Callable[..., Sender], status: int) -> None:
    with http_receiver() as received:
        received.does = Behaviour(status=status)
        to = sender(received, HTTP)
        ids = to.send()
        received.wait_for(lambda: to.counters.get(DROPPED, what="span", why="export_failed") == 1)
        time.sleep(0.5)
        assert len(received.times) == 1
        assert to.fates == [(ids[0], False)]


@pytest.mark.parametrize("code", ["UNAVAILABLE", "ABORTED", "DATA_LOSS", "DEADLINE_EXCEEDED"])
def test_over_grpc_what_may_pass_is_tried_until_it_has(sender: Callable[..., Sender], code: str) -> None:
    with grpc_receiver() as received:
        received.does = Behaviour(code=grpc.StatusCode[code])
        to = sender(received, GRPC)
        to.send(2)
        received.wait_for(lambda: len(received.times) >= 3)
        received.does = Behaviour()
        received.wait_for(lambda: to.counters.get(EXPORTED) == 2)
        assert to.counters.get(DROPPED) == 0


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "UNAUTHENTICATED", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"])
def test_over_grpc_what_is_permanent_is_sent_once(sender: Callable[..., Sender], code: str) -> None:
    with grpc_receiver() as received:
        received.does = Behaviour(code=grpc.StatusCode[code])
        to = sender(received, GRPC)
        to.send()
        received.wait_for(lambda: to.counters.get(DROPPED, what="span", why="export_failed") == 1)
        time.sleep(0.5)
        assert len(received.times) == 1


@pytest.mark.parametrize("wire", [HTTP, GRPC])
def test_a_server_is_not_retried_before_the_time_it_asks_for(sender: Callable[..., Sender], wire: str) -> None:
    with http_receiver() if wire == HTTP else grpc_receiver() as received:
        # longer than the timeout of one export, within which the SDK would honour it
        received.does = Behaviour(status=429, code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after="2")
        to = sender(received, wire)
        to.send()
        received.wait_for(lambda: len(received.times) == 1)
        received.does = Behaviour()
        received.wait_for(lambda: to.counters.get(EXPORTED) == 1)
        first, second = received.times
        assert second - first >= 2.0


@pytest.mark.parametrize("wire", [HTTP, GRPC])
def test_rejected_items_are_counted_logged_and_not_sent_again(
    sender: Callable[..., Sender], log_lines: Callable[[], list[str]], wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "300")
    with http_receiver() if wire == HTTP else grpc_receiver() as received:
        received.does = Behaviour(rejected=2)
        to = sender(received, wire)
        to.send(5)
        received.wait_for(lambda: to.counters.get(EXPORTED) == 3)
        assert to.counters.get(DROPPED, what="span", why="rejected") == 2
        assert len(received.times) == 1
        assert len(to.fates) == 5
        assert "rejected 2 of 5 spans (too old)" in log_lines()[0]


def test_a_connection_that_is_cut_is_a_try_like_any_other(sender: Callable[..., Sender]) -> None:
    with http_receiver() as received:
        received.does = Behaviour(cut=True)
        to = sender(received, HTTP)
        to.send()
        received.wait_for(lambda: len(received.times) >= 3)
        received.does = Behaviour()
        received.wait_for(lambda: to.counters.get(EXPORTED) == 1)
        assert len(received.spans) == 1


def test_patience_ends_and_what_was_held_is_given_up(sender: Callable[..., Sender]) -> None:
    with http_receiver() as received:
        received.does = Behaviour(status=503)
        to = sender(received, HTTP)
        to.emitter._delivery.patience_s = 0.3
        to.send(2)
        received.wait_for(lambda: to.counters.get(DROPPED, what="span", why="export_failed") == 2)
        assert [delivered for _, delivered in to.fates] == [False, False]
        received.does = Behaviour()
        to.send()
        received.wait_for(lambda: to.counters.get(EXPORTED) == 1)


def test_at_the_end_the_queue_is_sent_and_a_requested_wait_is_not_cut_short(
    sender: Callable[..., Sender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with http_receiver() as received:
        to = sender(received, HTTP)
        to.send(7)
        to.emitter.shutdown(5)
        assert to.counters.get(EXPORTED) == len(received.spans) == 7
        assert len(to.fates) == 7
    with http_receiver() as received:
        received.does = Behaviour(status=503, retry_after="60")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        to = sender(received, HTTP)
        ids = to.send()
        received.wait_for(lambda: len(received.times) == 1)
        start = time.monotonic()
        to.emitter.shutdown(5)
        assert time.monotonic() - start < 3
        assert len(received.times) == 1
        assert to.fates == [(ids[0], False)]


@pytest.mark.parametrize("wire", [HTTP, GRPC])
def test_headers_tls_and_mtls_are_as_the_variables_say(
    sender: Callable[..., Sender], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wire: str
) -> None:
    server, client = certificate(tmp_path, "server"), certificate(tmp_path, "client")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20abc,x-tenant=t")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(server.certificate))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate(tmp_path, "everyone").certificate))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(client.certificate))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(client.key))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
    credentials = grpc.ssl_server_credentials(
        [(server.key.read_bytes(), server.certificate.read_bytes())], client.certificate.read_bytes(), True
    )
    with http_receiver(server.server(client)) if wire == HTTP else grpc_receiver(credentials) as received:
        to = sender(received, wire)
        to.send()
        received.wait_for(lambda: to.counters.get(EXPORTED) == 1)
        headers = {name.lower(): value for name, value in received.headers[0].items()}
        assert (headers["authorization"], headers["x-tenant"]) == ("Basic abc", "t")


@pytest.mark.parametrize("wire", [HTTP, GRPC])
def test_a_certificate_that_is_not_the_servers_sends_nothing_and_is_named(
    sender: Callable[..., Sender],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    log_lines: Callable[[], list[str]],
    wire: str,
) -> None:
    server, other = certificate(tmp_path, "server"), certificate(tmp_path, "other")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(other.certificate))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    credentials = grpc.ssl_server_credentials([(server.key.read_bytes(), server.certificate.read_bytes())])
    with http_receiver(server.server()) if wire == HTTP else grpc_receiver(credentials) as received:
        to = sender(received, wire)
        to.send()
        received.wait_for(lambda: bool(log_lines()))
        to.emitter.shutdown(1)
        assert received.times == []
        assert "cannot be delivered to https://127.0.0.1" in log_lines()[0]
        assert to.counters.get(DROPPED, what="span") == 1
