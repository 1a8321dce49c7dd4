"""A store that cannot be written: one clear warning with its fix, exact counts, and no change to others' files."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store import schema
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]
DROPPED = "corevital.telemetry.dropped"


def ids(number: int) -> SpanIds:
    return SpanIds(f"{number:032x}", f"{number:016x}")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.fixture
def log_lines(logged: Callable[[], list[logging.LogRecord]]) -> Callable[[], list[str]]:
    return lambda: [record.message for record in logged() if record.name == "corevital.store"]


def foreign(path: Path, version: int) -> bytes:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    return path.read_bytes()


@pytest.mark.parametrize(("version", "fix"), [(99, "upgrade corevital"), (0, "use another file"), (-3, "another file")])
def test_a_foreign_file_is_refused_once_and_stays_byte_for_byte(
    tmp_path: Path, report: Make, log_lines: Callable[[], list[str]], version: int, fix: str
) -> None:
    path = tmp_path / "theirs.db"
    before = foreign(path, version)
    counters = Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    for number in range(1200):  # more than one batch
        writer.put(record_of(report(), ids(number)))
    wait_for(lambda: counters.get(DROPPED, what="report", why="store_refused") == 1200)
    writer.put(record_of(report(), ids(1201)))
    writer.close(5)
    assert counters.get(DROPPED) == 1201
    (line,) = log_lines()
    assert fix in line
    assert str(path) in line
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["theirs.db"]


def test_an_older_schema_is_never_migrated_silently(
    tmp_path: Path, report: Make, log_lines: Callable[[], list[str]]
) -> None:
    path = tmp_path / "old.db"
    before = foreign(path, schema.VERSION - 1)
    counters = Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    writer.put(record_of(report(), ids(1)))
    writer.close(5)
    assert "run `corevital db migrate`" in log_lines()[0]
    assert counters.get(DROPPED, why="store_refused") == 1
    assert path.read_bytes() == before


def test_a_corrupt_file_is_logged_with_the_fix_and_not_changed(
    tmp_path: Path, report: Make, log_lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corevital_otel.store.writer._RETRY_S", 0.02)
    path = tmp_path / "corrupt.db"
    path.write_bytes(b"no database" * 1000)
    before = path.read_bytes()
    counters = Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    writer.put(record_of(report(), ids(1)))
    wait_for(lambda: bool(log_lines()))
    time.sleep(0.2)  # some tries more
    writer.close(5)
    failed, end = log_lines()
    assert f"{path} cannot be written (file is not a database): move it away" in failed
    assert "before the end" in end
    assert counters.get(DROPPED, what="report", why="store_unwritable") == 1
    assert path.read_bytes() == before


def test_reports_lost_to_a_lock_at_the_end_are_counted_and_the_end_is_bounded(
    tmp_path: Path, report: Make, log_lines: Callable[[], list[str]]
) -> None:
    path = tmp_path / "locked.db"
    first = StoreWriter(path, 36500, 1024, Counters())
    first.put(record_of(report(), ids(1)))
    first.close(5)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    counters = Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    for number in range(2, 5):
        writer.put(record_of(report(), ids(number)))
    start = time.monotonic()
    writer.close(0.5)
    assert time.monotonic() - start < 2
    assert counters.get(DROPPED, what="report", why="store_unwritable") == 3
    assert log_lines() == [f"3 reports could not be written to {path} before the end"]
    holder.execute("ROLLBACK")
    holder.close()
    writer._thread.join(20)  # it may not outlive the test


def test_a_lock_that_ends_loses_nothing(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "locked.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA journal_mode = WAL")
    holder.execute("BEGIN EXCLUSIVE")
    counters = Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    for number in range(5):
        writer.put(record_of(report(), ids(number)))
    time.sleep(0.3)
    holder.execute("ROLLBACK")
    holder.close()
    writer.close(20)
    assert StoreReader(path).count() == 5
    assert counters.get(DROPPED) == 0


def test_waiting_reports_are_bounded_by_memory_and_the_oldest_go_first(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corevital_otel.store.writer._KEPT_BYTES", 700_000)
    monkeypatch.setattr("corevital_otel.store.writer._RETRY_S", 0.05)
    folder = tmp_path / "later"
    folder.write_text("a file where the folder should be")
    counters = Counters()
    writer = StoreWriter(folder / "corevital.db", 36500, 1024, counters)
    for number in range(50):  # 100,000 tokens, of which the series wait: 16 bytes each
        writer.put(record_of(report(tokens=2000, request_id=f"r{number}"), ids(number)))
    lost = counters.get(DROPPED, what="report", why="store_full")
    assert 25 < lost < 50
    folder.unlink()
    writer.close(10)
    kept = {row.request_id for row in StoreReader(folder / "corevital.db").list_reports(limit=100)}
    lost = counters.get(DROPPED)
    assert len(kept) == 50 - lost
    assert "r49" in kept


FULL = f"""
import json, resource, sys, time
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from pathlib import Path
from conftest import make_report
from corevital_otel.counters import Counters
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))  # no file grows beyond: a disk that is full
counters = Counters()
writer = StoreWriter(Path(sys.argv[1]), 36500, 1024, counters)
for number in range(1000):
    writer.put(record_of(make_report(request_id=f"r{{number}}"), SpanIds(f"{{number:032x}}", f"{{number:016x}}")))
    time.sleep(0.001)
writer.close(10)
print(json.dumps(counters.get("corevital.telemetry.dropped")))
"""


def test_a_full_disk_loses_only_what_is_counted_and_harms_no_row(tmp_path: Path) -> None:
    path = tmp_path / "corevital.db"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    lost = json.loads(done.stdout)
    assert 0 < lost < 1000
    assert StoreReader(path).count() == 1000 - lost
    assert done.stderr.count("cannot be written") == 1
    assert "Traceback" not in done.stderr
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
