"""Upkeep in small steps: nothing waits for it, and the clock alone deletes nothing."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.risk.baseline import WINDOW
from corevital_otel.spans.record import record_of
from corevital_otel.store import clock, files, upkeep
from corevital_otel.store.clock import DAY_S, AgeClock
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.rows import moment
from corevital_otel.store.writer import StoreWriter

from .conftest import ids, opened, query, wait_for

Make = Callable[..., RequestReport]
DROPPED = "corevital.telemetry.dropped"
FILL = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
INSERT INTO reports (request_id, created_at_utc, model, finish_reason, prompt_tokens, output_tokens, risk_level,
    risk_basis, trace_id, span_id, flags, summary)
SELECT 'old-' || i, ?2, 'm', 'stop', 1, 0, 'low', 'prior', '1', 'x' || i, '[]', printf('{"a":"%.1500c"}', 'x') FROM n
"""


def filled(path: Path, report: Make, rows: int, when: str = "2020-01-01T00:00:00.000Z") -> None:
    writer = StoreWriter(path, 36500, 1024, Counters())
    writer.put(record_of(report(request_id="new", end_ns=time.time_ns()), ids(0)))
    writer.close(10)
    with opened(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(FILL, (rows, when))


@pytest.mark.parametrize(("days", "mb"), [(30, 1024), (36500, 4)], ids=["too old", "too much"])
def test_rows_are_written_while_a_full_store_is_pruned_and_its_log_stays_small(
    tmp_path: Path, report: Make, days: float, mb: float
) -> None:
    path, counters = tmp_path / "c.db", Counters()
    filled(path, report, 40_000)
    writer = StoreWriter(path, days, mb, counters)
    longest = log = 0.0
    number, begun = 0, time.monotonic()
    left = 40_000
    while left > 2700 and time.monotonic() - begun < 60:
        number += 1
        writer.put(record_of(report(series=None, end_ns=time.time_ns()), ids(number)))
        put_at = time.monotonic()
        wait_for(lambda: writer.waiting == 0)
        longest = max(longest, time.monotonic() - put_at)
        log = max(log, files.size(files.beside(path, "-wal")))
        left = int(query(path, "SELECT count(*) FROM reports WHERE request_id LIKE 'old-%'")[0][0])  # type: ignore[call-overload]
    writer.close(10)
    assert left <= 2700
    assert longest < 3
    assert log < 40 * 2**20
    assert counters.get(DROPPED) == 0
    kept = {row[0] for row in query(path, "SELECT span_id FROM reports")}
    assert {ids(n).span_id for n in range(1, number + 1)} <= kept
    if mb == 4:
        assert path.stat().st_size < 6 * 2**20


def test_another_process_writes_while_a_store_is_pruned(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "c.db"
    filled(path, report, 20_000)
    writer = StoreWriter(path, 36500, 1, Counters())
    longest = 0.0
    with opened(path) as other:
        begun = time.monotonic()
        while writer._busy or time.monotonic() - begun < 0.5:
            assert time.monotonic() - begun < 60
            start = time.monotonic()
            other.execute("INSERT OR IGNORE INTO resources (attributes) VALUES ('{}')")
            longest = max(longest, time.monotonic() - start)
            time.sleep(0.005)
    writer.close(10)
    assert longest < 2
    assert int(query(path, "SELECT count(*) FROM reports")[0][0]) < 1000  # type: ignore[call-overload]


def test_a_reader_that_holds_the_log_stops_deletions_not_rows(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_LOG_BYTES", 2**20)
    path = tmp_path / "c.db"
    filled(path, report, 20_000)
    with opened(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM reports").fetchone()
        writer = StoreWriter(path, 30, 1024, Counters())
        for number in range(1, 100):
            writer.put(record_of(report(series=None, end_ns=time.time_ns()), ids(number)))
            time.sleep(0.01)
        wait_for(lambda: writer.waiting == 0)
        assert files.size(files.beside(path, "-wal")) < 12 * 2**20
        held = int(query(path, "SELECT count(*) FROM reports")[0][0])  # type: ignore[call-overload]
        assert held > 10_000
        reader.execute("ROLLBACK")
    wait_for(lambda: int(query(path, "SELECT count(*) FROM reports")[0][0]) == 100, 60)  # type: ignore[call-overload]
    writer.close(10)


def test_a_store_closes_in_time_while_it_is_pruned(tmp_path: Path, report: Make) -> None:
    path, counters = tmp_path / "c.db", Counters()
    filled(path, report, 40_000)
    writer = StoreWriter(path, 30, 1024, counters)
    writer.put(record_of(report(series=None, end_ns=time.time_ns()), ids(1)))
    start = time.monotonic()
    writer.close(2)
    assert time.monotonic() - start < 2
    assert counters.get(DROPPED) == 0
    assert ids(1).span_id in {row[0] for row in query(path, "SELECT span_id FROM reports")}


def test_what_the_baseline_learned_is_bounded_step_by_step(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corevital_otel.store.writer._LEARNED_EVERY_S", 0.0)
    path = tmp_path / "c.db"
    writer = StoreWriter(path, 30, 1024, Counters())
    for turn in range(3):
        for number in range(WINDOW):
            writer.learn("m", "0.7", [float(turn), float("nan"), *[float(number)] * 2])
        writer.learn("other", "0", [1.0] * 4)
        writer.put(record_of(report(series=None), ids(turn)))
        wait_for(lambda: not writer._learned)
    writer.close(10)
    learned = StoreReader(path).learned()
    assert len([row for row in learned if row[0] == "m"]) == WINDOW
    assert {row[2][0] for row in learned if row[0] == "m"} == {2.0}
    assert len([row for row in learned if row[0] == "other"]) == 3


class Clocks:
    """A wall clock that can be set, and a steady one."""

    def __init__(self) -> None:
        self.passed, self.set_by = 0.0, 0.0
        self.start = time.time()

    def wall(self) -> float:
        return self.start + self.passed + self.set_by

    def steady(self) -> float:
        return 1000.0 + self.passed


def reckoned(clocks: Clocks, path: Path, *ages: float, retention: float = 30) -> tuple[AgeClock, Callable[[], float]]:
    """A clock of a store with rows of these ages in days, and what it says: days before the real time."""
    with opened(path) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS reports (id INTEGER PRIMARY KEY, created_at_utc TEXT)")
        for age in ages:
            when = moment(int((clocks.start - age * DAY_S) * 1e9))
            connection.execute("INSERT INTO reports (created_at_utc) VALUES (?)", (when,))
        found = AgeClock(path, retention * DAY_S, clocks.wall, clocks.steady)
        found.begin(connection)

    def days() -> float:
        with opened(path) as connection:
            return (clocks.start + clocks.passed - found.oldest(connection)) / DAY_S

    return found, days


TRAFFIC = tuple(0.01 + 0.9 * day for day in range(40))
"""Days: no gap in it is one that a clock could have made."""


def near(days: float) -> object:
    return pytest.approx(days, abs=0.1)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    monkeypatch.setattr(clock, "_time_of_files", lambda _: None)
    return Clocks()


def test_a_clock_that_is_set_while_the_server_runs_deletes_nothing(
    tmp_path: Path, clocks: Clocks, warnings: Callable[[], list[str]]
) -> None:
    _, days = reckoned(clocks, tmp_path / "c.db", *TRAFFIC)
    assert days() == near(30)
    clocks.set_by = 31 * DAY_S
    assert days() == near(30), "as old as the steady clock says"
    assert "it was set +744 hours" in warnings()[0]
    assert "corevital db prune" in warnings()[0]
    clocks.passed += 3600
    clocks.set_by = 0
    assert days() == near(30)
    clocks.passed += 2 * DAY_S
    assert days() == near(30), "believed again"
    clocks.set_by = -400 * DAY_S
    assert days() == near(430), "behind: the later a row seems, the longer it stays"
    assert len(warnings()) == 1


def test_a_clock_that_is_ahead_when_the_server_starts_deletes_nothing_for_a_day(tmp_path: Path, clocks: Clocks) -> None:
    clocks.set_by = 31 * DAY_S
    _, days = reckoned(clocks, tmp_path / "c.db", *TRAFFIC)
    assert days() == near(30)
    clocks.passed = 0.9 * DAY_S
    assert days() == near(30)
    clocks.passed = 1.1 * DAY_S
    assert days() == near(-1), "it has gone evenly: a pause"


def test_a_restart_under_a_wrong_clock_deletes_nothing_either(tmp_path: Path, clocks: Clocks) -> None:
    clocks.set_by = 31 * DAY_S
    _, days = reckoned(clocks, tmp_path / "c.db", *TRAFFIC, -31)  # the last was written before the restart
    assert days() == near(30)


@pytest.mark.parametrize("ages", [(), (0,), (0.5, 1.2, 2, 40), (0.1, 500), (0.1, -1000)], ids=str)
def test_a_clock_that_agrees_with_the_rows_is_trusted_at_once(
    tmp_path: Path, clocks: Clocks, ages: tuple[float, ...]
) -> None:
    _, days = reckoned(clocks, tmp_path / "c.db", *ages)
    assert days() == near(30)


def test_a_clock_ahead_of_the_file_systems_is_not_trusted(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    clocks = Clocks()
    clocks.set_by = 31 * DAY_S
    _, days = reckoned(clocks, tmp_path / "c.db", *(age - 31 for age in TRAFFIC))
    assert days() == near(30)
    assert "ahead of the file system's" in warnings()[0]


def test_a_writer_under_a_clock_31_days_ahead_empties_nothing(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    first = StoreWriter(path, 30, 1024, Counters())
    for number in range(10):
        first.put(record_of(report(series=None, end_ns=time.time_ns()), ids(number)))
    first.close(10)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 31 * DAY_S)
    for start in range(2):
        writer = StoreWriter(path, 30, 1024, Counters())
        writer.put(record_of(report(series=None, end_ns=time.time_ns() + int(31 * DAY_S * 1e9)), ids(20 + start)))
        writer.close(10)
    assert StoreReader(path).count() == 12


def test_the_oldest_by_size_are_those_written_first_whatever_their_time(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "c.db"
    filled(path, report, 3000, when="2100-01-01T00:00:00.000Z")
    writer = StoreWriter(path, 36500, 2, Counters())
    writer.put(record_of(report(request_id="last", series=None, end_ns=time.time_ns()), ids(5)))
    writer.close(20)
    left = {str(row[0]) for row in query(path, "SELECT request_id FROM reports")}
    assert {"last", "old-3000"} <= left
    assert "old-1" not in left


def test_a_prune_command_ends_if_another_process_holds_the_store(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_PATIENCE_S", 0.3)
    path = tmp_path / "c.db"
    filled(path, report, 100)
    with opened(path) as holder, opened(path) as connection:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="another process holds it"):
            upkeep.prune(connection, path, time.time(), None)
        holder.execute("ROLLBACK")
        seen: list[int] = []
        assert upkeep.prune(connection, path, time.time(), None, seen.append) == 101
        assert seen == sorted(seen)
        assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
