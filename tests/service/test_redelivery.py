"""With ``COREVITAL_DB_RESEND=1`` spans outlive their server and an outage: the store is the queue."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.harness.collector import collector
from tests.harness.faulty import Behaviour, Received, http_receiver
from tests.harness.hub_load import finish_one
from tests.harness.processes import environment, within

from corevital_otel.errors import SettingsError
from corevital_otel.losses import Loss
from corevital_otel.service import redelivery
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings, load
from corevital_otel.store.outbox import Outbox

EXPORTED, DROPPED = "corevital.telemetry.exported", "corevital.telemetry.dropped"
FAST = {
    "OTEL_BSP_SCHEDULE_DELAY": "50",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corevital_otel.otlp.delivery._PAUSES_S", (0.05, 0.1))
    monkeypatch.setattr(redelivery, "_FIRST_S", 0.1)
    monkeypatch.setattr(redelivery, "_EVERY_S", 0.2)
    monkeypatch.setattr(redelivery, "_REFUSED_S", 0.2)
    monkeypatch.setattr(redelivery, "_BOUND_EVERY_S", 0.0)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with http_receiver() as receiver:
        for name, value in {**FAST, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}.items():
            monkeypatch.setenv(name, value)
        yield receiver


def fates(path: Path) -> dict[str | None, int]:
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        return dict(connection.execute("SELECT export, count(*) FROM reports GROUP BY 1"))


def stored(path: Path, count: int = 1) -> bool:
    with contextlib.suppress(sqlite3.OperationalError):  # not made yet
        return sum(fates(path).values()) >= count
    return False


def ids(received: Received) -> Counter[str]:
    return Counter(span.span_id.hex() for span in received.spans)


def rows(path: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {span for (span,) in connection.execute("SELECT span_id FROM reports")}


@contextmanager
def server(path: Path, received: Received, *arguments: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a hub under load, which is killed at the end."""
    settings = {"COREVITAL_DB": str(path), "COREVITAL_DB_RESEND": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.harness.hub_load", *arguments],
        env=environment({**FAST, **settings, "PYTHONPATH": os.pathsep.join(sys.path), **env}),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.send_signal(signal.SIGKILL)
        process.wait()


@contextmanager
def hub(path: Path, **settings: Any) -> Iterator[Hub]:
    running = Hub(Settings(db=path, db_resend=True, **settings))
    running.start()
    try:
        yield running
    finally:
        running.close()


@pytest.mark.slow
@pytest.mark.parametrize("away", [True, False])
def test_a_killed_servers_spans_are_sent_by_the_next_start(tmp_path: Path, received: Received, away: bool) -> None:
    path = tmp_path / "c.db"
    received.does = Behaviour(status=503) if away else Behaviour()
    for again in range(3):  # three kills, each between a row and its span
        with server(path, received, "--prefix", f"{again}-"):
            within(30, lambda again=again: stored(path, (again + 1) * 40))
    assert fates(path)["queued"] > 0, "a queue that was empty proves nothing"
    received.does = Behaviour()
    with hub(path) as running:
        within(30, lambda: set(fates(path)) == {"sent"})
        assert running.counters.get(DROPPED) == 0
    found = ids(received)
    assert rows(path) <= set(found), "each row's span has arrived"
    if away:
        assert set(found.values()) == {1}, "once: no acknowledgement was lost"
        assert running.counters.get(EXPORTED, signal="traces") == len(found)


@pytest.mark.slow
def test_a_server_that_runs_keeps_its_own_and_loses_them_to_another_when_it_is_killed(
    tmp_path: Path, received: Received
) -> None:
    path = tmp_path / "c.db"
    received.does = Behaviour(status=503, retry_after="60")  # the span waits in the exporter of the first one
    with server(path, received, "--requests", "20", "--rate", "1000") as first:
        within(30, lambda: stored(path, 20))
        within(30, lambda: received.times)
        received.does = Behaviour()
        with hub(path) as second:
            finish_one(second, "own")
            within(20, lambda: len(received.spans) == 1)
            time.sleep(1.0)  # some looks at the store
            assert len(received.spans) == 1, "the other server runs"
            first.kill()
            within(20, lambda: len(received.spans) == 21)
            within(20, lambda: fates(path) == {"sent": 21})
    assert set(ids(received).values()) == {1}


@pytest.mark.slow
def test_two_servers_of_one_instance_do_not_send_what_the_other_has(
    tmp_path: Path, received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-0")
    path = tmp_path / "c.db"
    received.does = Behaviour(status=503, retry_after="60")
    same = {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=pod-0"}
    with server(path, received, "--requests", "5", "--rate", "1000", **same) as first:
        within(30, lambda: stored(path, 5))
        within(30, lambda: received.times)
        received.does = Behaviour()
        with hub(path):
            time.sleep(1.0)
            assert not received.spans
            first.kill()
            within(20, lambda: fates(path) == {"sent": 5})
    assert set(ids(received).values()) == {1}


def test_spans_of_an_outage_wait_and_are_not_counted_as_lost(
    tmp_path: Path, received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    monkeypatch.setenv("OTEL_BSP_EXPORT_TIMEOUT", "100")  # the exporter's patience
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    received.does = Behaviour(status=503)
    with hub(path) as running:
        for number in range(200):
            finish_one(running, f"r{number}")
        within(20, lambda: stored(path, 200))
        time.sleep(0.6)
        assert fates(path) == {"queued": 200}
        assert running.counters.get(DROPPED) == 0
        received.does = Behaviour()
        within(20, lambda: fates(path) == {"sent": 200})
        assert running.counters.get(EXPORTED, signal="traces") == 200
    assert ids(received) == Counter(rows(path)), "each once"


def test_what_a_server_could_not_send_at_its_end_waits_for_the_next_start(tmp_path: Path, received: Received) -> None:
    path = tmp_path / "c.db"
    received.does = Behaviour(status=503)
    with hub(path) as running:
        for number in range(10):
            finish_one(running, f"r{number}")
    assert fates(path) == {"queued": 10}
    assert running.counters.get(DROPPED) == 0
    received.does = Behaviour()
    with hub(path):
        within(20, lambda: fates(path) == {"sent": 10})
    assert set(ids(received).values()) == {1}


@pytest.mark.slow
def test_a_real_collector_gets_a_killed_servers_spans_by_grpc(
    tmp_path: Path, received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    received.does = Behaviour(status=503)
    with server(path, received):
        within(30, lambda: stored(path, 50))
    with collector(tmp_path) as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.grpc)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        with hub(path):
            within(30, lambda: set(fates(path)) == {"sent"})
        within(30, lambda: running.sink.times.keys() >= rows(path))
        assert set(running.sink.times.values()) == {1}


def test_a_start_whose_backend_is_still_down_keeps_them(tmp_path: Path, received: Received) -> None:
    path = tmp_path / "c.db"
    received.does = Behaviour(status=503)
    for number in range(3):
        with hub(path) as running:
            finish_one(running, f"r{number}")
            before = len(received.times)
            within(20, lambda before=before: len(received.times) > before + 2)
    assert fates(path) == {"queued": 3}
    received.does = Behaviour(status=401)  # it refuses all: a token that has run out, which somebody will renew
    with hub(path) as running:
        finish_one(running, "r3")
        before = len(received.times)
        within(20, lambda: len(received.times) > before + 2)
    assert fates(path) == {"queued": 4}
    assert running.counters.get(DROPPED) == 0


def test_spans_that_are_not_to_be_exported_never_are(tmp_path: Path, received: Received) -> None:
    path = tmp_path / "c.db"
    received.does = Behaviour(status=503)
    with hub(path, sample_rate=0.0, http_spans=False) as running:
        for number in range(5):
            finish_one(running, f"no{number}")
            finish_one(running, f"yes{number}", sample=True)
    received.does = Behaviour()
    with hub(path):
        within(20, lambda: fates(path).get("sent") == 5)
    names = {a.value.string_value for s in received.spans for a in s.attributes if a.key == "gen_ai.response.id"}
    assert names == {f"yes{number}" for number in range(5)}


def waiting(path: Path, received: Received, count: int) -> None:
    """So many spans in a store, of a server that has ended."""
    received.does = Behaviour(status=503)
    with hub(path) as running:
        for number in range(count):
            finish_one(running, f"r{number}")
    assert fates(path) == {"queued": count}


def test_too_old_spans_are_given_up_counted_once_and_left_to_the_command(tmp_path: Path, received: Received) -> None:
    path = tmp_path / "c.db"
    waiting(path, received, 6)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE reports SET created_at_utc = '2026-01-01T00:00:00.000Z' WHERE id <= 4")
    received.does = Behaviour()
    with hub(path) as running:
        within(20, lambda: fates(path) == {"undelivered": 4, "sent": 2})
        within(20, lambda: running.counters.lost(Loss.SPAN_TOO_OLD) == 4)
    with hub(path) as running:
        time.sleep(0.5)
        assert running.counters.get(DROPPED) == 0, "counted by the first"
    with Outbox(path) as box:
        assert box.count() == 4


def test_the_oldest_are_given_up_where_too_many_wait(tmp_path: Path, received: Received) -> None:
    path = tmp_path / "c.db"
    waiting(path, received, 30)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE reports SET series = zeroblob(100000)")  # 3 MB: ten fit
    with hub(path, db_resend_max_mb=1) as running:
        within(20, lambda: running.counters.lost(Loss.SPAN_BACKLOG_FULL) == 20)
        assert fates(path) == {"undelivered": 20, "queued": 10}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT min(id) FROM reports WHERE export = 'queued'").fetchone() == (21,)


def test_a_row_that_makes_no_span_is_given_up_and_blocks_no_other(tmp_path: Path, received: Received) -> None:
    path = tmp_path / "c.db"
    waiting(path, received, 6)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE reports SET trace_id = 'zz' WHERE id = 1")
        connection.execute("UPDATE reports SET summary = '{\"n\": {}}' WHERE id = 2")
        connection.execute("UPDATE reports SET resource_id = -5 WHERE id = 3")  # nobody's that can be known
    received.does = Behaviour()
    with hub(path) as running:
        within(20, lambda: fates(path) == {"undelivered": 2, "queued": 1, "sent": 3})
        within(20, lambda: running.counters.lost(Loss.SPAN_UNENCODABLE) == 2)


def test_a_refused_span_blocks_no_other_and_is_left_alone_for_a_while(tmp_path: Path, received: Received) -> None:
    path = tmp_path / "c.db"
    received.does = Behaviour(status=503)
    with hub(path) as running:
        for number in range(12):
            finish_one(running, f"{'venom' if number == 2 else 'r'}{number}")
    received.does, received.poison = Behaviour(), b"venom"
    with hub(path) as running:
        within(20, lambda: fates(path) == {"queued": 1, "sent": 11})
        time.sleep(0.5)
        before = len(received.times)
        time.sleep(0.5)
        assert len(received.times) == before
        assert running.counters.get(DROPPED) == 0


def test_spans_are_not_sent_twice_where_the_store_cannot_note_it(
    tmp_path: Path, received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    waiting(path, received, 5)
    received.does = Behaviour()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("CREATE TRIGGER full BEFORE UPDATE ON reports BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        with hub(path):
            within(20, lambda: len(received.spans) == 5)
            time.sleep(0.6)
            assert len(received.spans) == 5
            holder.execute("DROP TRIGGER full")
            within(20, lambda: fates(path) == {"sent": 5})
    assert len(received.spans) == 5


def test_one_process_sends_from_a_store_at_a_time(tmp_path: Path, received: Received) -> None:
    path = tmp_path / "c.db"
    waiting(path, received, 5)
    received.does = Behaviour()
    with Outbox(path), hub(path):
        time.sleep(0.6)
        assert not received.spans
    with hub(path):
        within(20, lambda: fates(path) == {"sent": 5})


def test_a_backlog_costs_little_and_delays_no_new_span(
    tmp_path: Path, received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    waiting(path, received, 600)
    received.does = Behaviour()
    monkeypatch.setattr(redelivery, "_LONGEST_PAUSE_S", 60.0)
    with hub(path) as running:
        assert running._outputs._redelivery is not None
        within(20, lambda: received.spans)
        before = len(received.spans)
        assert before <= 3 * redelivery._BATCH, "it pauses between batches"
        finish_one(running, "new")
        begun = time.monotonic()
        within(5, lambda: any("new" in str(span.attributes) for span in received.spans))
        assert time.monotonic() - begun < 2.0


def test_without_the_setting_nothing_is_sent_later_and_no_file_is_made(tmp_path: Path, received: Received) -> None:
    path = tmp_path / "c.db"
    received.does = Behaviour(status=503)
    for _ in range(2):
        running = Hub(Settings(db=path))
        running.start()
        finish_one(running, f"r{time.monotonic_ns()}")
        running.close()
        received.does = Behaviour()
    assert fates(path) == {"undelivered": 1, "sent": 1}
    assert {file.name for file in tmp_path.iterdir()} <= {"c.db", "c.db-wal", "c.db-shm"}


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"COREVITAL_DB": "", "COREVITAL_DB_RESEND": "1"}, "COREVITAL_DB_RESEND=1 needs a store"),
        ({"COREVITAL_DB_RESEND_HOURS": "0"}, "COREVITAL_DB_RESEND_HOURS='0' is not allowed: use a number above 0"),
        ({"COREVITAL_DB_RESEND_MAX_MB": "0"}, "COREVITAL_DB_RESEND_MAX_MB='0' is not allowed: use a number from 1"),
    ],
)
def test_a_wrong_setting_is_one_line(env: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(says)):
        load(env)
