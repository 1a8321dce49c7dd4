"""Evaluations as log records: at a real collector, and at backends that take none, refuse, are slow or are down."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.trace import SpanContext, TraceFlags
from tests.harness.collector import Collector, collector
from tests.harness.faulty import Behaviour, Received, grpc_receiver, http_receiver

from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.otlp.destination import logs_destination
from corevital_otel.report import Admission, RequestReport, Risk
from corevital_otel.sampling import Sampler
from corevital_otel.service.outputs import Outputs
from corevital_otel.settings import Settings
from corevital_otel.spans.evaluations import limits

Make = Callable[..., RequestReport]
DROPPED, EXPORTED = "corevital.telemetry.dropped", "corevital.telemetry.exported"
HTTP = "http/protobuf"
BASE, WIRE = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "20")


@pytest.fixture(scope="module")
def rotel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    with collector(tmp_path_factory.mktemp("rotel")) as running:
        yield running


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Outputs, Counters]]]:
    """Outputs without a store that send to an endpoint, and their counters."""
    made: list[Outputs] = []

    def make(endpoint: str, wire: str = HTTP, **env: str) -> tuple[Outputs, Counters]:
        for name, value in {BASE: endpoint, WIRE: wire, **env}.items():
            monkeypatch.setenv(name, value)
        counters = Counters()
        made.append(Outputs(Settings(db=None, http_spans=False), counters, Sampler(1.0)))
        return made[-1], counters

    yield make
    for each in made:
        each.close()


def receiver(wire: str) -> Any:
    return http_receiver() if wire == HTTP else grpc_receiver()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize("wire", ["grpc", HTTP])
def test_a_log_record_arrives_and_names_its_span(
    rotel: Collector, outputs: Callable[..., tuple[Outputs, Counters]], report: Make, wire: str
) -> None:
    spans, logs = len(rotel.sink.spans), len(rotel.sink.logs)
    sender, counters = outputs(rotel.grpc if wire == "grpc" else rotel.http, wire, OTEL_SERVICE_NAME="checkout")
    caller = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))
    sender.put(report(admission=Admission(parent=caller)))
    sender.put(report(risk=Risk(score=None, level="unknown"), request_id="chatcmpl-2"))
    first, second = sorted(
        rotel.sink.wait_for_logs(logs + 2)[logs:], key=lambda log: log.attributes["gen_ai.response.id"]
    )
    found = {span.span_id: span for span in rotel.sink.wait_for(spans + 2)[spans:]}
    for log in (first, second):
        span = found[log.span_id]
        (name, event), *_ = span.events
        assert (log.event_name, log.attributes) == (name, event)
        assert name == "gen_ai.evaluation.result"
        assert (log.trace_id, log.time_ns, log.resource) == (span.trace_id, span.end_ns, span.resource)
        assert (log.severity, log.number, log.flags, log.scope) == ("INFO", 9, 1, "corevital")
        assert log.resource["service.name"] == "checkout"
    assert first.trace_id == f"{0xABC:032x}"
    assert first.attributes["gen_ai.evaluation.score.value"] == 0.25
    assert "gen_ai.evaluation.score.value" not in second.attributes
    wait_for(lambda: counters.get(EXPORTED, signal="logs") == 2)
    assert counters.get(DROPPED) == 0


@pytest.mark.parametrize(
    "off",
    [{"OTEL_LOGS_EXPORTER": "none"}, {"OTEL_LOGS_EXPORTER": "console"}, {"OTEL_TRACES_EXPORTER": "none"},
     {"OTEL_SDK_DISABLED": "true"}],
)  # fmt: skip
def test_where_logs_or_spans_are_off_no_log_record_is_sent(
    outputs: Callable[..., tuple[Outputs, Counters]], report: Make, off: dict[str, str]
) -> None:
    with http_receiver() as received:
        sender, counters = outputs(received.endpoint, **off)
        sender.put(report())
        sender.close()
        assert len(received.spans) == ("OTEL_LOGS_EXPORTER" in off)
        assert received.log_requests == []
    assert counters.get(DROPPED) == counters.get(EXPORTED, signal="logs") == 0


def test_a_span_that_is_not_exported_has_no_log_record(
    outputs: Callable[..., tuple[Outputs, Counters]], report: Make
) -> None:
    with http_receiver() as received:
        sender, _ = outputs(received.endpoint)
        sender.put(report(admission=Admission(exported=False)))
        sender.put(report())
        sender.close()
        assert len(received.spans) == len(received.logs) == 1


@pytest.mark.parametrize(
    ("wire", "refusal"),
    [(HTTP, Behaviour(status=404)), (HTTP, Behaviour(status=501)), (HTTP, Behaviour(status=405)),
     ("grpc", Behaviour(code=grpc.StatusCode.UNIMPLEMENTED))],
)  # fmt: skip
def test_a_backend_without_logs_costs_one_request_and_one_warning(
    outputs: Callable[..., tuple[Outputs, Counters]],
    report: Make,
    logged: Callable[[], list[logging.LogRecord]],
    wire: str,
    refusal: Behaviour,
) -> None:
    with receiver(wire) as received:
        received.does_with_logs = refusal
        sender, counters = outputs(received.endpoint, wire)
        for number in range(1, 4):
            sender.put(report())
            wait_for(lambda number=number: counters.lost(Loss.LOG_EXPORT_FAILED) == number)
        wait_for(lambda: counters.get(EXPORTED, signal="traces") == 3)
        assert len(received.log_requests) == 1
    assert counters.get(DROPPED) == 3, "spans are unaffected"
    (line,) = logged()
    assert "log records of evaluations cannot be delivered to" in line.message
    assert "set OTEL_LOGS_EXPORTER=none if it takes no logs" in line.message


def test_it_is_asked_again_later(
    monkeypatch: pytest.MonkeyPatch, outputs: Callable[..., tuple[Outputs, Counters]], report: Make,
    logged: Callable[[], list[logging.LogRecord]],
) -> None:  # fmt: skip
    monkeypatch.setattr("corevital_otel.otlp.delivery._UNSUPPORTED_S", 0.2)
    with http_receiver() as received:
        received.does_with_logs = Behaviour(status=404)
        sender, counters = outputs(received.endpoint)
        sender.put(report())
        wait_for(lambda: counters.lost(Loss.LOG_EXPORT_FAILED) == 1)
        received.does_with_logs = Behaviour()
        time.sleep(0.3)
        sender.put(report())
        wait_for(lambda: counters.get(EXPORTED, signal="logs") == 1)
    assert "log records of evaluations are delivered to" in logged()[-1].message


@pytest.mark.parametrize("wire", ["grpc", HTTP])
def test_logs_that_hang_hold_up_neither_spans_nor_the_end(
    monkeypatch: pytest.MonkeyPatch, outputs: Callable[..., tuple[Outputs, Counters]], report: Make, wire: str
) -> None:
    with receiver(wire) as received, socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}/v1/logs")
        sender, counters = outputs(received.endpoint, wire)
        for _ in range(5):
            sender.put(report())
        wait_for(lambda: counters.get(EXPORTED, signal="traces") == 5)
        start = time.monotonic()
        sender.close()
        assert time.monotonic() - start < 3
    assert counters.lost(Loss.LOG_SHUTDOWN) == counters.get(DROPPED) == 5


def test_a_full_queue_is_counted(
    monkeypatch: pytest.MonkeyPatch, outputs: Callable[..., tuple[Outputs, Counters]], report: Make
) -> None:
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "60000")
    with http_receiver() as received:
        sender, counters = outputs(
            received.endpoint, OTEL_BLRP_MAX_QUEUE_SIZE="16", OTEL_BLRP_MAX_EXPORT_BATCH_SIZE="16"
        )
        received.does_with_logs = Behaviour(delay_s=0.5)
        for _ in range(40):
            sender.put(report())
        sender.close()
        assert counters.lost(Loss.LOG_QUEUE_FULL) == 24
        assert len(received.logs) == counters.get(EXPORTED, signal="logs") == 16
        assert len(received.spans) == 40


def test_rejected_ones_are_counted(
    outputs: Callable[..., tuple[Outputs, Counters]], report: Make, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    with grpc_receiver() as received:
        received.does_with_logs = Behaviour(rejected=1)
        sender, counters = outputs(received.endpoint, "grpc")
        sender.put(report())
        sender.close()
    assert counters.lost(Loss.LOG_REJECTED) == 1
    assert counters.get(EXPORTED, signal="logs") == 0
    assert [line.message.endswith("rejected 1 of 1 log records (too old): they are counted, and not sent again")
            for line in logged()] == [True]  # fmt: skip


def test_one_that_cannot_be_encoded_affects_no_other(
    monkeypatch: pytest.MonkeyPatch, outputs: Callable[..., tuple[Outputs, Counters]], report: Make,
    logged: Callable[[], list[logging.LogRecord]],
) -> None:  # fmt: skip
    with http_receiver() as received:
        sender, counters = outputs(received.endpoint)
        broken = report()
        object.__setattr__(broken.outcome, "end_ns", 2**64)  # OTLP has 64 bits
        sender.put(broken)
        sender.put(report())
        sender.close()
        assert len(received.logs) == 1
    assert counters.lost(Loss.LOG_UNENCODABLE) == 1
    assert any("the log record of span" in line.message for line in logged())


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({BASE: "http://h:4317"}, ("grpc", "http://h:4317")),
        ({BASE: "http://h:4318/", WIRE: HTTP}, (HTTP, "http://h:4318/v1/logs")),
        ({BASE: "http://h", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://l/x", WIRE: HTTP}, (HTTP, "http://l/x")),
        ({BASE: "http://h", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": HTTP}, (HTTP, "http://h/v1/logs")),
        ({BASE: "http://h:4318", "OTEL_LOGS_EXPORTER": "otlp_proto_http"}, (HTTP, "http://h:4318/v1/logs")),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h"}, None),
        ({BASE: "http://h", "OTEL_LOGS_EXPORTER": " None "}, None),
        ({BASE: "http://h", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_logs_go_where_the_variables_say(env: dict[str, str], expected: tuple[str, str] | None) -> None:
    found = logs_destination(env)
    assert (None if found is None else (found.protocol, found.url)) == expected


def test_headers_of_logs_are_sent_with_logs_alone_and_never_logged(
    outputs: Callable[..., tuple[Outputs, Counters]], report: Make, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    with http_receiver() as received:
        received.does_with_logs = Behaviour(status=401)
        sender, _ = outputs(received.endpoint, OTEL_EXPORTER_OTLP_LOGS_HEADERS="x-key=topsecretvalue")
        sender.put(report())
        sender.close()
        assert received.log_requests[0]["x-key"] == "topsecretvalue"
        assert "x-key" not in received.headers[0]
    assert logged()
    assert not any("topsecret" in line.message for line in logged())


def test_the_limits_of_log_records_take_precedence_over_those_of_all() -> None:
    assert (limits({}).max_attributes, limits({}).max_attribute_length) == (128, None)
    found = limits({"OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "3", "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT": " 9 "})
    assert (found.max_attributes, found.max_attribute_length) == (3, 9)


def test_a_limit_of_attributes_is_obeyed(outputs: Callable[..., tuple[Outputs, Counters]], report: Make) -> None:
    with http_receiver() as received:
        sender, _ = outputs(
            received.endpoint, OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT="2", OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="4"
        )
        sender.put(report())
        sender.close()
    (log,) = received.logs
    assert (len(log.attributes), log.dropped_attributes_count) == (2, 3)
    assert max(len(pair.value.string_value) for pair in log.attributes) == 4


@pytest.mark.parametrize("wire", ["grpc", HTTP])
def test_the_doctor_names_the_destination_and_what_it_answers(
    monkeypatch: pytest.MonkeyPatch, wire: str, tmp_path: Path
) -> None:
    from corevital_otel.cli.doctor import _logs

    assert _logs().status == "none"
    received: Received
    with receiver(wire) as received:
        monkeypatch.setenv(BASE, received.endpoint)
        monkeypatch.setenv(WIRE, wire)
        assert (_logs().status, _logs().text) == ("ok", f"{received.endpoint} by {wire}")
        received.does_with_logs = Behaviour(status=404, code=grpc.StatusCode.UNIMPLEMENTED)
        assert _logs().status == "warn"
        assert "takes no log records" in _logs().text
        assert "set OTEL_LOGS_EXPORTER=none" in _logs().text
        monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
        assert _logs().status == "none"
        monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
        assert "no spans are sent" in _logs().text
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://user:secret@127.0.0.1:9")
    check = _logs()
    assert check.status == "fail"
    assert check.text.startswith("http://127.0.0.1:9 cannot be reached")
