"""A span's fate reaches its row, even with many others waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import record_of
from corevital_otel.store import waiting
from corevital_otel.store.rows import Row
from corevital_otel.store.waiting import Waiting
from corevital_otel.store.writer import StoreWriter

from .conftest import ids, opened, query, wait_for

Make = Callable[..., RequestReport]
DROPPED = "corevital.telemetry.dropped"


def exports(path: Path) -> dict[object, object]:
    return dict(query(path, "SELECT export, count(*) FROM reports GROUP BY 1"))  # type: ignore[arg-type]


def test_delivered_spans_are_sent_in_the_store_while_reports_always_wait(tmp_path: Path, report: Make) -> None:
    path, counters = tmp_path / "c.db", Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    one = report(series=None)
    for number in range(12_000):
        writer.put(record_of(one, ids(number, exported=True)))
        if number >= 3000:  # later than its row, as an exporter does
            writer.settle([ids(number - 3000).span_id], number % 4 > 0)
    for number in range(9000, 12_000):
        writer.settle([ids(number).span_id], True)
    writer.close(30)
    assert counters.get(DROPPED) == 0
    assert exports(path) == {"sent": 9750, "undelivered": 2250}


def test_fates_of_an_outage_are_written_when_the_store_can_be_again(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corevital_otel.store.writer._RETRY_S", 0.05)
    path, counters = tmp_path / "c.db", Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    writer.put(record_of(report(), ids(0, exported=True)))
    writer.put(record_of(report(), ids(1, exported=True)))
    wait_for(lambda: writer.waiting == 0)
    with opened(path) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        writer.put(record_of(report(), ids(2, exported=True)))
        writer.settle([ids(0).span_id], True)  # its row is written
        writer.settle([ids(2).span_id], True)  # its row waits
        writer.settle([ids(1).span_id, "f" * 16], False)  # and an unknown one
        holder.execute("ROLLBACK")
    writer.close(20)
    assert exports(path) == {"sent": 2, "undelivered": 1}
    assert counters.get(DROPPED) == 0


def test_a_fate_for_a_row_of_another_process_or_one_put_twice_or_never_exported(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "c.db"
    other = StoreWriter(path, 36500, 1024, Counters())
    other.put(record_of(report(), ids(0, exported=True)))
    other.put(record_of(report(), ids(1, exported=True)))
    other.put(record_of(report(), ids(2)))
    other.close(20)
    writer = StoreWriter(path, 36500, 1024, Counters())
    writer.settle([ids(0).span_id], True)
    writer.put(record_of(report(), ids(1, exported=True)))  # again: its row is there
    writer.settle([ids(1).span_id, ids(2).span_id], True)
    writer.close(20)
    assert exports(path) == {"sent": 2, None: 1}


def test_what_was_sent_is_never_unsent(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "c.db"
    writer = StoreWriter(path, 36500, 1024, Counters())
    writer.put(record_of(report(), ids(0, exported=True)))
    wait_for(lambda: writer.waiting == 0)
    query(path, "UPDATE reports SET export = 'sent'")  # `corevital db export` was faster
    writer.settle([ids(0).span_id], False)
    writer.close(20)
    assert exports(path) == {"sent": 1}


def test_fates_that_cannot_be_written_before_the_end_are_counted(tmp_path: Path, report: Make) -> None:
    path, counters = tmp_path / "c.db", Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    writer.put(record_of(report(), ids(0, exported=True)))
    wait_for(lambda: writer.waiting == 0)
    with opened(path) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        writer.settle([ids(0).span_id], True)
        writer._thread.join(0.3)  # it is trying
        writer.close(0.3)
        holder.execute("ROLLBACK")
    writer._thread.join(20)
    assert counters.get(DROPPED, what="fate", why="store_unwritable") in (0, 1)
    assert exports(path) in ({"queued": 1}, {"sent": 1})


def test_fates_are_bounded_and_those_of_dropped_rows_go_with_them(
    report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_MOST_FATES", 100)
    found, one = Waiting(), report(series=None)
    lost = gone = 0
    for number in range(1000):  # ten wait at a time
        gone += found.put(Row(record_of(one, ids(number, exported=True))), 10, 10**9)
        lost += found.settle([ids(number - 50).span_id], "sent")
    assert (gone, lost, found.fates) == (990, 0, 50 - 0), "only the fifty that were never put are kept"
    assert found.settle([f"{number:x}" for number in range(500)], "sent") > 0
    assert found.fates == 100


def test_a_row_keeps_its_fate_through_a_failed_try(report: Make) -> None:
    found, one = Waiting(), report(series=None)
    found.put(Row(record_of(one, ids(0, exported=True))), 10, 10**9)
    found.take(10, 10**9)
    found.settle([ids(0).span_id], "sent")
    found.give_back(found.take_fates(10))
    found.take(10, 10**9)
    assert [row.export for row in found.taken] == ["sent"]
