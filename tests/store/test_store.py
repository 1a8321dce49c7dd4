"""The store keeps what it committed even if the process is killed, and never doubles a row."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import Health, RequestReport, Risk, Series
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store import schema, series
from corevital_otel.store.reader import StoreError, StoreReader
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]
ROOT = Path(__file__).resolve().parents[2]


def ids(number: int) -> SpanIds:
    return SpanIds(f"{number:032x}", f"{number:016x}")


def write(path: Path, reports: list[RequestReport], first: int = 1, **bounds: float) -> Counters:
    counters = Counters()
    writer = StoreWriter(path, bounds.get("days", 36500), bounds.get("mb", 1024), counters)
    for number, report in enumerate(reports, first):
        writer.put(record_of(report, ids(number)))
    writer.close(10)
    return counters


def now_ns() -> int:
    return time.time_ns()


def test_a_row_has_the_columns_of_the_contract(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "new/folder/corevital.db"
    write(path, [report(health=Health(truncated=True))])
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        (row,) = connection.execute("SELECT * FROM reports").fetchall()
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 4
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    connection.close()
    assert row["request_id"] == "chatcmpl-1"
    assert row["created_at_utc"] == "2026-09-21T14:13:22.000Z"
    assert (row["model"], row["finish_reason"], row["prompt_tokens"], row["output_tokens"]) == ("tiny", "stop", 7, 3)
    assert (row["risk_score"], row["risk_level"], row["risk_basis"]) == (0.25, "low", "prior")
    assert (row["trace_id"], row["span_id"]) == ids(1)[:2]
    assert json.loads(row["flags"]) == ["truncated"]
    assert json.loads(row["summary"])["corevital.entropy.mean"] == 0.5
    assert np.array_equal(series.unpack(row["series"]).entropy, np.linspace(0, 1, 3, dtype=np.float32))
    assert [file.name for file in path.parent.iterdir()] == ["corevital.db"], "a clean end leaves one file"


def test_a_retry_never_doubles_a_row_and_a_restart_goes_on(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "corevital.db"
    write(path, [report(), report()], first=1)
    write(path, [report(), report()], first=2)
    assert StoreReader(path).count() == 3


def test_the_reader_finds_by_each_condition(tmp_path: Path, report: Make) -> None:
    path = tmp_path / "corevital.db"
    reports = [
        report(request_id="chatcmpl-aa", end_ns=now_ns() - 7200 * 10**9),
        report(request_id="chatcmpl-ab", end_ns=now_ns(), risk=Risk(score=0.9, level="high"), model="big"),
        report(request_id="chatcmpl-ab", sequence=1, end_ns=now_ns(), health=Health(nan_detected=True)),
    ]
    write(path, reports)
    reader = StoreReader(path)

    def found(**conditions: object) -> list[tuple[str, int]]:
        return [(row.request_id, row.sequence) for row in reader.list_reports(**conditions)]  # type: ignore[arg-type]

    assert found() == [("chatcmpl-ab", 1), ("chatcmpl-ab", 0), ("chatcmpl-aa", 0)]
    assert found(since=timedelta(hours=1)) == [("chatcmpl-ab", 1), ("chatcmpl-ab", 0)]
    assert found(risk_above=0.5) == found(models=["big"]) == [("chatcmpl-ab", 0)]
    assert found(flag="nan_detected") == [("chatcmpl-ab", 1)]
    assert found(limit=1) == [("chatcmpl-ab", 1)]
    assert [row.sequence for row in reader.get("chatcmpl-ab")] == [0, 1]
    assert len(reader.get("chatcmpl-a")) == 3
    assert reader.get("chatcmpl-ab")[0].series is not None


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        StoreReader(tmp_path / "none.db").count()
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError, match=r"cannot be read: file is not a database"):
        StoreReader(broken).count()


def test_retention_by_age_and_by_size(tmp_path: Path, report: Make) -> None:
    old = [report(end_ns=now_ns() - 3 * 86400 * 10**9, request_id=f"old-{i}") for i in range(5)]
    write(tmp_path / "age.db", [*old, report(end_ns=now_ns(), request_id="new")], days=2)
    assert [row.request_id for row in StoreReader(tmp_path / "age.db").list_reports()] == ["new"]

    path = tmp_path / "size.db"
    noise = np.random.default_rng(0).random((4, 2000), dtype=np.float32)
    big = Series(entropy=noise[0], surprisal=noise[1], margin=noise[2], topk_mass=noise[3])
    write(path, [report(series=big, end_ns=now_ns() + i, request_id=f"r{i}") for i in range(1200)])
    writer = StoreWriter(path, 36500, 5, Counters())
    writer.put(record_of(report(end_ns=now_ns() + 10**10, request_id="last"), ids(5000)))
    deadline = time.monotonic() + 60
    while path.stat().st_size >= 6e6 and time.monotonic() < deadline:
        time.sleep(0.05)
    writer.close(10)
    kept = StoreReader(path).list_reports(limit=2000)
    assert path.stat().st_size < 6e6
    assert kept[0].request_id == "last"
    assert "r0" not in {row.request_id for row in kept}


WRITER = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from conftest import make_report
from corevital_otel.counters import Counters
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter
writer = StoreWriter(Path(sys.argv[1]), 36500, 1024, Counters())
first = int(sys.argv[2])
for number in range(first, first + int(sys.argv[3])):
    writer.put(record_of(make_report(request_id=f"r{{number}}"), SpanIds(f"{{number:032x}}", f"{{number:016x}}")))
    time.sleep(0.0005)
print("done", flush=True)
writer.close(30)
""".format(tests=str(ROOT / "tests"))


def start_writer(path: Path, first: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def committed(path: Path) -> set[str]:
    try:
        return {row.span_id for row in StoreReader(path).list_reports(limit=100_000)}
    except StoreError:  # not made yet
        return set()


@pytest.mark.parametrize("rows", [1, 40, 300])
def test_a_killed_writer_loses_no_committed_row(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "corevital.db"
    with start_writer(path, 1, 1_000_000) as process:
        deadline = time.monotonic() + 30
        while len(committed(path)) < rows and time.monotonic() < deadline:
            time.sleep(0.01)
        before = committed(path)
        os.kill(process.pid, signal.SIGKILL)
    assert len(before) >= rows
    assert before <= committed(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "corevital.db"
    with start_writer(path, 1, 500) as one, start_writer(path, 1001, 500) as two:
        assert one.wait(60) == two.wait(60) == 0
    assert StoreReader(path).count() == 1000


@pytest.fixture
def log_lines(logged: Callable[[], list[logging.LogRecord]]) -> Callable[[], list[str]]:
    return lambda: [record.message for record in logged() if record.name == "corevital.store"]


def test_a_path_that_cannot_be_written_is_logged_once_and_counted(
    report: Make, log_lines: Callable[[], list[str]]
) -> None:
    counters = write(Path("/proc/nowhere/corevital.db"), [report() for _ in range(3)])
    assert counters.get("corevital.telemetry.dropped", what="report") == 3
    assert sum("cannot be written" in line and "COREVITAL_DB" in line for line in log_lines()) == 1


def test_a_row_that_no_database_takes_does_not_stop_the_others(tmp_path: Path, report: Make) -> None:
    counters = write(tmp_path / "c.db", [report(end_ns=-(10**30)), report(), report(sequence=2**70), report()])
    assert StoreReader(tmp_path / "c.db").count() == 2
    assert counters.get("corevital.telemetry.dropped", what="report", why="store_row") == 2


def test_a_report_that_raises_anything_does_not_hold_up_the_others(tmp_path: Path, report: Make) -> None:
    class Odd:
        nbytes = 4

        def __len__(self) -> int:
            return 1

        def __getitem__(self, _: object) -> object:
            raise RuntimeError("odd")

    odd = report(series=Series(entropy=Odd(), surprisal=Odd(), margin=Odd(), topk_mass=Odd()))  # type: ignore[arg-type]
    counters = write(tmp_path / "c.db", [odd, report(), report()])
    assert StoreReader(tmp_path / "c.db").count() == 2
    assert counters.get("corevital.telemetry.dropped", what="report", why="store_row") == 1


def test_half_a_surrogate_pair_is_stored_as_a_question_mark(tmp_path: Path, report: Make) -> None:
    counters = write(tmp_path / "c.db", [report(request_id="r\ud800"), report()])
    (row,) = StoreReader(tmp_path / "c.db").get("r\ud800")
    assert (row.request_id, row.summary["gen_ai.response.id"]) == ("r?", "r?")
    assert counters.get("corevital.telemetry.dropped") == 0


def test_a_full_disk_loses_nothing_once_it_has_room(
    tmp_path: Path, report: Make, log_lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corevital.db"
    monkeypatch.setattr("corevital_otel.store.writer._RETRY_S", 0.05)
    full = True
    open_ = StoreWriter._open

    def limited(writer: StoreWriter) -> sqlite3.Connection:
        connection = open_(writer)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages if full else 1_000_000}")
        return connection

    monkeypatch.setattr(StoreWriter, "_open", limited)
    counters = Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    for number in range(200):
        writer.put(record_of(report(request_id=f"r{number}"), ids(number)))
    deadline = time.monotonic() + 10
    while not log_lines() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "database or disk is full" in log_lines()[0]
    full = False
    writer.close(10)
    assert StoreReader(path).count() == 200
    assert counters.get("corevital.telemetry.dropped") == 0


@pytest.mark.parametrize(("version", "fix"), [(99, "upgrade corevital"), (-1, "another file")])
def test_a_foreign_schema_is_never_written(
    tmp_path: Path, report: Make, log_lines: Callable[[], list[str]], version: int, fix: str
) -> None:
    path = tmp_path / "corevital.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE reports (theirs)")
        connection.execute(f"PRAGMA user_version = {max(version, 0)}")
    connection.close()
    before = path.read_bytes()[100:]
    counters = write(path, [report()])
    assert counters.get("corevital.telemetry.dropped", what="report", why="store_refused") == 1
    assert len(log_lines()) == 1
    assert fix in log_lines()[0]
    assert path.read_bytes()[100:] == before


def test_without_a_path_nothing_is_stored(report: Make) -> None:
    writer = StoreWriter(None, 30, 1024, Counters())
    writer.put(record_of(report(), ids(1)))
    writer.close(1)


def test_times_sort_as_text(tmp_path: Path, report: Make) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 6000, tzinfo=UTC)
    write(tmp_path / "c.db", [report(end_ns=int(moment.timestamp() * 1e9))], days=36500)
    assert StoreReader(tmp_path / "c.db").list_reports()[0].created_at_utc == "2026-01-02T03:04:05.006Z"
    assert schema.VERSION == 4


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_store_of_an_older_schema_is_migrated_on_request_and_then_written(
    tmp_path: Path, report: Make, version: int
) -> None:
    path = tmp_path / "corevital.db"
    write(path, [report()])
    with sqlite3.connect(path) as connection:  # back to what those versions made
        connection.execute("ALTER TABLE reports DROP COLUMN content")
        if version < 3:
            connection.execute("DROP TABLE resources")
            connection.execute("DROP TABLE baseline")
            connection.execute("ALTER TABLE reports DROP COLUMN resource_id")
        if version == 1:
            connection.execute("DROP INDEX reports_unsent")
            for column in ("parent_span_id", "start_ns", "end_ns", "export"):
                connection.execute(f"ALTER TABLE reports DROP COLUMN {column}")
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with pytest.raises(StoreError, match="run `corevital db migrate`"):
        StoreReader(path).count()
    command = [sys.executable, "-m", "corevital_otel.cli", "db", "migrate", "--db", str(path)]
    log_lines = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert f"schema 4, migrated from schema {version}" in log_lines[0]
    assert "schema 4, already up to date" in log_lines[1]
    counters = Counters()
    writer = StoreWriter(path, 36500, 1024, counters, {"service.name": "vllm"})
    writer.put(record_of(report(request_id="new"), ids(2)))
    writer.close(5)
    assert {row.request_id for row in StoreReader(path).list_reports()} == {"chatcmpl-1", "new"}
    assert counters.get("corevital.telemetry.dropped") == 0


def test_servers_that_start_together_make_one_store(tmp_path: Path) -> None:
    def open_it(path: Path, all_there: threading.Barrier) -> None:
        connection = sqlite3.connect(path, timeout=20.0, isolation_level=None)
        all_there.wait()
        for _ in range(20):  # also while another one creates it
            schema.check(connection)
        schema.create(connection)
        assert schema.check(connection)
        connection.close()

    with ThreadPoolExecutor(4) as pool:
        for number in range(40):
            all_there = threading.Barrier(4)
            opened = [pool.submit(open_it, tmp_path / f"{number}.db", all_there) for _ in range(4)]
            for one in opened:
                one.result()


def test_a_request_whose_client_id_is_not_known_is_found_by_the_engine_s(
    tmp_path: Path, report: Callable[..., RequestReport]
) -> None:
    path = tmp_path / "store.db"
    made = report(request_id="")
    object.__setattr__(made.admitted, "engine_id", "tgi-1a2b3c4d-7")
    write(path, [made])
    (row,) = StoreReader(path).get("tgi-1a2b3c4d")
    assert row.request_id == "tgi-1a2b3c4d-7"
    assert "gen_ai.response.id" not in row.summary
