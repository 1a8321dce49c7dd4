"""What could not be delivered stays in the store, and `corevital db export --otlp` sends it once, as it was."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanContext, TraceFlags
from tests.harness.faulty import Behaviour, Received, http_receiver

from corevital_otel.counters import Counters
from corevital_otel.otlp.resource import Facts
from corevital_otel.report import Admission, RequestReport, Risk
from corevital_otel.spans.emitter import SpanEmitter
from corevital_otel.store import outbox
from corevital_otel.store.outbox import Outbox
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]


def export(path: Path, received: Received | None, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "COREVITAL_"))}
    if received is not None:
        kept |= {"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    command = [sys.executable, "-m", "corevital_otel.cli", "db", "export", "--db", str(path), *arguments]
    return subprocess.run(command, env=kept | env, capture_output=True, text=True, timeout=60, check=False)


def serve(path: Path, reports: list[RequestReport], engine: Facts | None = None) -> None:
    """What a server does with reports."""

    def settled(span_ids: Sequence[str], delivered: bool) -> None:
        store.settle(span_ids, delivered)

    emitter = SpanEmitter(Counters(), engine=engine, fate=settled)
    store = StoreWriter(path, 36500, 1024, Counters(), emitter.resource.attributes)
    for report in reports:
        record = emitter.record(report)
        store.put(record)
        emitter.send(record)
    emitter.shutdown(5)
    store.close(5)


@pytest.fixture
def to(monkeypatch: pytest.MonkeyPatch) -> Callable[[Received], None]:
    def point(received: Received) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")

    return point


@pytest.mark.slow
def test_spans_that_a_server_could_not_deliver_are_sent_once_and_as_they_were(
    tmp_path: Path, report: Make, to: Callable[[Received], None]
) -> None:
    path = tmp_path / "corevital.db"
    admission = Admission(parent=SpanContext(0xABC, 0xDEF, True, TraceFlags(1)))
    with http_receiver() as received:
        to(received)
        delivered = [report(request_id=f"good{number}") for number in range(3)]
        serve(path, delivered)
        assert len(received.spans) == 3
        received.does = Behaviour(status=503, retry_after="30")
        serve(path, [report(request_id=f"lost{number}", admission=admission, tokens=300) for number in range(4)])
        serve(path, [report(request_id="at-risk", risk=Risk(score=0.9, level="high"), reason="error", series=None)])
        received.does = Behaviour(status=400)
        done = export(path, received, "--otlp")
        assert done.returncode == 1
        assert "5 spans could not be delivered" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 2  # the cause, then the outcome

        received.does = Behaviour()
        assert StoreReader(path).undelivered() == 5
        assert "5 spans are waiting" in export(path, received, "--otlp", "--dry-run").stdout
        done = export(path, received, "--otlp", COREVITAL_OTEL_PROFILE="langfuse")
        assert (done.returncode, done.stdout) == (0, f"5 spans sent to {received.endpoint}\n"), done.stderr
        again = export(path, received, "--otlp")
        assert (again.returncode, again.stdout) == (0, "0 spans are waiting to be sent\n")
    assert len({span.span_id for span in received.spans}) == len(received.spans) == 8
    by_id = {next(a.value.string_value for a in span.attributes if a.key == "gen_ai.response.id"): span
             for span in received.spans}  # fmt: skip
    lost, before = by_id["lost0"], by_id["good0"]
    assert lost.parent_span_id.hex() == f"{0xDEF:016x}"
    assert lost.trace_id.hex() == f"{0xABC:032x}"
    assert (lost.name, lost.kind) == (before.name, before.kind)
    assert (lost.start_time_unix_nano, lost.end_time_unix_nano) == (
        before.start_time_unix_nano,
        before.end_time_unix_nano,
    )
    assert [event.name for event in lost.events] == ["gen_ai.evaluation.result", "corevital.series", "corevital.series"]
    ours = {a.key for a in lost.attributes if not a.key.startswith("langfuse.")}
    assert ours == {a.key for a in before.attributes}
    levels = [a.value.string_value for a in by_id["at-risk"].attributes if a.key == "langfuse.observation.level"]
    assert levels == ["ERROR"]
    assert by_id["at-risk"].status.code == 2


def test_a_row_that_cannot_be_sent_does_not_block_others(
    tmp_path: Path, report: Make, to: Callable[[Received], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corevital.db"
    with http_receiver() as received:
        to(received)
        received.does = Behaviour(status=400)
        serve(path, [report(request_id=f"{'venom' if number == 2 else 'r'}{number}") for number in range(12)])
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE reports SET trace_id = 'zz' WHERE request_id = 'r4'")
            connection.execute("UPDATE reports SET summary = '{\"n\": {}}' WHERE request_id = 'r5'")
        connection.close()
        received.does, received.poison = Behaviour(), b"venom"
        done = export(path, received, "--otlp")
        assert len(received.spans) == 9
        assert done.returncode == 1
        assert "1 spans could not be delivered" in done.stderr
        assert "Traceback" not in done.stderr
        received.poison = b""
        done = export(path, received, "--otlp")
        assert len(received.spans) == 10
        assert done.returncode == 1
        assert "2 are damaged (" in done.stderr
        assert "and were skipped" in done.stderr


@pytest.mark.slow
def test_a_batch_that_is_refused_whole_does_not_end_the_export(
    tmp_path: Path, report: Make, to: Callable[[Received], None]
) -> None:
    path = tmp_path / "corevital.db"
    with http_receiver() as received:
        to(received)
        received.does = Behaviour(status=400)
        serve(path, [report(request_id=f"{'venom' if number < 200 else 'r'}{number}", series=None)
                     for number in range(300)])  # fmt: skip
        received.does, received.poison = Behaviour(), b"venom"
        done = export(path, received, "--otlp")
        assert "100 spans sent" in done.stdout
        assert "200 spans could not be delivered" in done.stderr
        received.does, received.poison = Behaviour(status=401), b""
        before = len(received.times)
        export(path, received, "--otlp")
        assert len(received.times) - before == 1, "it stops, because going on is useless"


def test_spans_sent_later_are_of_the_server_that_made_them(
    tmp_path: Path, report: Make, to: Callable[[Received], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corevital.db"
    with http_receiver() as received:
        to(received)
        received.does = Behaviour(status=400)
        for name in ("one", "two"):
            monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"service.instance.id={name},host.name=h")
            serve(path, [report(request_id=f"{name}{number}") for number in range(2)], {"device.name": f"GPU {name}"})
        with sqlite3.connect(path) as connection:  # a row of an older version
            connection.execute("UPDATE reports SET resource_id = NULL WHERE request_id = 'two1'")
        connection.close()
        received.does = Behaviour()
        done = export(path, received, "--otlp", OTEL_RESOURCE_ATTRIBUTES="service.instance.id=later")
        assert done.returncode == 0, done.stderr
        request = ExportTraceServiceRequest.FromString(received.bodies[-1])
    found = []
    for group in request.resource_spans:
        facts = {pair.key: pair.value.string_value for pair in group.resource.attributes}
        count = sum(len(scope.spans) for scope in group.scope_spans)
        found.append((facts["service.instance.id"], facts.get("corevital.device.name"), facts.get("host.name"), count))
        if facts["service.instance.id"] == "later":
            assert facts["service.name"] == "vllm", "the row names its engine"
    assert sorted(found) == [("later", None, None, 1), ("one", "GPU one", "h", 2), ("two", "GPU two", "h", 1)]


def test_what_is_not_meant_for_a_collector_is_never_sent(
    tmp_path: Path, report: Make, to: Callable[[Received], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corevital.db"
    serve(path, [report(request_id="no endpoint then")])
    with http_receiver() as received:
        to(received)
        with Outbox(path) as box:
            assert box.count() == 0


def test_a_killed_servers_queued_spans_are_sent_once_no_server_can_hold_them(
    tmp_path: Path, report: Make, to: Callable[[Received], None]
) -> None:
    path = tmp_path / "corevital.db"
    with http_receiver() as received:
        to(received)
        store = StoreWriter(path, 36500, 1024, Counters())
        emitter = SpanEmitter(Counters())  # reports no fate, like a process that was killed
        now = time.time()
        record = emitter.record(report(end_ns=int(now * 1e9)))
        store.put(record)
        emitter.send(record)
        store.close(5)
        emitter.shutdown(5)
    with Outbox(path, now + 60) as box:
        assert box.count() == 0
    with Outbox(path, now + outbox.ABANDONED_S + 1) as box:
        assert [len(batch) for batch in box.batches(10)] == [1]


def test_two_exports_at_once_do_not_send_the_same(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "corevital.db"
    serve(path, [report()])
    with Outbox(path), http_receiver() as received:
        done = export(path, received, "--otlp")
    assert done.returncode == 1
    assert "is being sent by another process already" in done.stderr
    assert [file.name for file in tmp_path.iterdir() if "sending" in file.name] == []


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [((), "use --otlp", 2), (("--otlp",), "set OTEL_EXPORTER_OTLP_ENDPOINT", 1)],
)
def test_a_wrong_call_is_one_line(
    tmp_path: Path, report: Make, arguments: tuple[str, ...], says: str, code: int
) -> None:
    path = tmp_path / "corevital.db"
    serve(path, [report()])
    done = export(path, None, *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
    assert says in done.stderr
