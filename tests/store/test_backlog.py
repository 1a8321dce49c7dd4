"""Spans that wait in the store: whose they are, and that a loss of one is counted."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import record_of
from corevital_otel.store import senders as locks
from corevital_otel.store.backlog import Backlog
from corevital_otel.store.ledger import Ledger
from corevital_otel.store.senders import Senders, join
from corevital_otel.store.writer import StoreWriter

from .conftest import ids, opened, query, wait_for

Make = Callable[..., RequestReport]
DROPPED = "corevital.telemetry.dropped"


def writer(path: Path, counters: Counters, instance: str = "one") -> StoreWriter:
    return StoreWriter(path, 36500, 1024, counters, {"service.instance.id": instance}, keeps_spans=True)


def rows(path: Path, of: StoreWriter | None = None, now: float | None = None) -> list[int]:
    """What is free to be sent, as a server sees it that has ``of`` as its store."""
    ledger = of.ledger if of is not None and of.ledger is not None else Ledger()
    senders = of.senders if of is not None else Senders(path)
    try:
        with Backlog(path, ledger, senders, now) as backlog:
            return [row for page in backlog.pages(2) for row in page]
    finally:
        if of is None and senders is not None:
            senders.close()


def test_a_span_is_free_once_its_exporter_gave_it_up_or_its_server_ended(tmp_path: Path, report: Make) -> None:
    path, counters = tmp_path / "c.db", Counters()
    now = report(series=None, end_ns=time.time_ns())
    store = writer(path, counters)
    for number in range(5):
        store.put(record_of(now, ids(number, exported=True)))
    wait_for(lambda: store.waiting == 0)
    assert rows(path, store) == []
    assert rows(path) == [], "another server: the first one runs"
    assert store.settle([ids(0).span_id, ids(1).span_id, "f" * 16], delivered=False) == 2, "one is not a report's"
    store.settle([ids(2).span_id], delivered=True)
    store.settle([ids(3).span_id], delivered=False, unfit=True)
    wait_for(lambda: query(path, "SELECT export FROM reports WHERE id = 4") == [("undelivered",)])
    assert rows(path, store) == [1, 2]
    assert rows(path) == []
    store.close(10)
    assert rows(path) == [1, 2, 5]
    assert counters.get(DROPPED) == 0


def test_a_span_that_was_delivered_while_the_store_was_read_is_not_free(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "c.db"
    store = writer(path, Counters())
    for number in range(3):
        store.put(record_of(report(series=None, end_ns=time.time_ns()), ids(number, exported=True)))
    store.close(10)

    class Settled(Ledger):
        """A stand-in: the writer notes a delivery just before the ledger is asked."""

        def __contains__(self, span_id: object) -> bool:
            query(path, "UPDATE reports SET export = 'sent' WHERE span_id = ?", span_id)
            return False

    senders = Senders(path)
    with Backlog(path, Settled(), senders) as backlog:
        assert list(backlog.pages(10)) == []
    senders.close()


def test_a_server_that_locks_nothing_is_given_an_hour(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "c.db"
    store = StoreWriter(path, 36500, 1024, Counters(), {"service.instance.id": "without"})
    store.put(record_of(report(series=None, end_ns=time.time_ns()), ids(0, exported=True)))
    store.close(10)
    assert rows(path) == []
    assert rows(path, now=time.time() + 3700) == [1]


def test_a_lock_ends_with_its_process_and_a_fork_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    code = (
        "import os, sys, time; from pathlib import Path; from corevital_otel.store.senders import Senders\n"
        f"held = Senders(Path({str(path)!r})); held.hold(7)\n"
        "child = os.fork()\n"
        "print(child, flush=True) if child else None\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    time.sleep(0.2)  # the fork forgets what it inherits
    looking = Senders(path)
    try:
        with looking.alone(7) as alone:
            assert not alone
        with looking.alone(8) as alone:
            assert not alone, "never locked: it may be of a server that does not"
        process.kill()
        process.wait()
        with looking.alone(7) as alone:
            assert alone
    finally:
        looking.close()
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_the_file_of_locks_has_the_stores_mode(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    path.touch()
    path.chmod(0o660)
    for _ in range(2):
        Senders(path).close()
    assert stat.S_IMODE(Path(f"{path}-senders").stat().st_mode) == 0o660


def test_nobody_starts_while_another_looks_and_both_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_TRIES", 3)
    path = tmp_path / "c.db"
    first, looking = Senders(path), Senders(path)
    first.hold(3)
    first.close()
    with looking.alone(3) as alone:
        assert alone
        with pytest.raises(BlockingIOError):
            join(path, 3)
    second = join(path, 3)
    assert second is not None
    with looking.alone(3) as alone:
        assert not alone
    with second.alone(3) as alone:
        assert alone, "it is the only one"
    with looking.alone(3) as alone:
        assert not alone, "it still holds its own"
    second.close()
    second.close()
    looking.close()


def test_a_file_system_without_locks_is_reported_once(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("corevital_otel.store.senders.fcntl.fcntl", no_locks)
    path = tmp_path / "c.db"
    store = writer(path, Counters())
    store.put(record_of(report(series=None), ids(0, exported=True)))
    store.close(10)
    assert query(path, "SELECT export FROM reports") == [("queued",)]
    assert store.senders is None
    assert [record.message for record in logged() if "cannot be locked" in record.message] == [
        f"the file {path}-senders cannot be locked (Function not implemented): spans of a killed server are sent after "
        "an hour"
    ]


@pytest.mark.parametrize("given_up_first", [True, False])
def test_a_span_whose_row_is_dropped_is_counted_once(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch, given_up_first: bool
) -> None:
    monkeypatch.setattr("corevital_otel.store.writer._KEPT", 3)
    monkeypatch.setattr("corevital_otel.store.writer._RETRY_S", 0.05)
    path, counters = tmp_path / "c.db", Counters()
    store = writer(path, counters)
    wait_for(lambda: store.senders is not None)
    kept = 0
    with opened(path) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        for number in range(10):
            store.put(record_of(report(series=None), ids(number, exported=True)))
            if given_up_first:
                kept += store.settle([ids(number).span_id], delivered=False)
        if not given_up_first:
            kept += store.settle([ids(number).span_id for number in range(10)], delivered=False)
        holder.execute("ROLLBACK")
    store.close(20)
    written = len(query(path, "SELECT 1 FROM reports WHERE export = 'queued'"))
    assert written < 10
    assert kept - counters.lost(Loss.SPAN_NOT_STORED) == written, "the exporter counts those that are not kept"


def test_spans_that_the_stores_bound_deletes_are_counted(tmp_path: Path, report: Make) -> None:
    path, counters = tmp_path / "c.db", Counters()
    store = StoreWriter(path, 36500, 1, counters, {"service.instance.id": "one"}, keeps_spans=True)
    for number in range(600):
        store.put(record_of(report(tokens=900), ids(number, exported=number % 2 == 0)))
        store.settle([ids(number).span_id], delivered=False)
    store.close(30)
    left = len(query(path, "SELECT 1 FROM reports WHERE export = 'queued'"))
    assert counters.lost(Loss.SPAN_BACKLOG_FULL) == 300 - left > 0
    assert counters.get(DROPPED) == counters.lost(Loss.SPAN_BACKLOG_FULL)
