"""SQL over a store can read it, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import record_of
from corevital_otel.store.files import StoreError
from corevital_otel.store.query import Query
from corevital_otel.store.writer import StoreWriter

from .conftest import ids, query


@pytest.fixture
def store(tmp_path: Path, report: Callable[..., RequestReport]) -> Path:
    path = tmp_path / "corevital.db"
    writer = StoreWriter(path, 36500, 1024, Counters())
    for number in range(3):
        writer.put(record_of(report(request_id=f"r{number}"), ids(number)))
    writer.close(10)
    return path


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT count(*), max(request_id) FROM reports", [["count(*)", "max(request_id)"], (3, "r2")]),
        ("""SELECT summary ->> '$."corevital.entropy.mean"' AS mean FROM reports LIMIT 1""", [["mean"], (0.5,)]),
        (
            "SELECT value FROM reports, json_each(reports.summary, '$.\"corevital.risk.factors\"') LIMIT 1",
            [["value"], ("entropy peak 6.2 bits",)],
        ),
        ("WITH one AS (SELECT 1 AS a) SELECT a FROM one", [["a"], (1,)]),
        ("SELECT name FROM pragma_table_info('resources')", [["name"], ("id",), ("attributes",)]),
        ("PRAGMA user_version", [["user_version"], (4,)]),
    ],
)
def test_it_reads(store: Path, sql: str, expected: list[object]) -> None:
    assert list(Query(store, 30).run(sql)) == expected


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        *(
            (sql, "is refused (a change): it can only read this store; write a SELECT")
            for sql in (
                "DELETE FROM reports",
                "UPDATE reports SET model = 'x'",
                "INSERT INTO resources (attributes) VALUES ('x')",
                "WITH n AS (SELECT 1) DELETE FROM reports",
                "DELETE FROM reports RETURNING id",
                "CREATE TABLE t (a)",
                "CREATE TEMP TABLE t (a)",
                "CREATE VIRTUAL TABLE temp.t USING fts5(a)",
                "DROP TABLE reports",
                "ALTER TABLE reports ADD COLUMN a",
                "REINDEX",
                "ANALYZE",
                "COMMIT",
                "BEGIN",
                "SAVEPOINT a",
            )
        ),
        ("UPDATE sqlite_master SET sql = ''", "table sqlite_master may not be modified"),
        ("ATTACH 'other.db' AS other", "is refused (ATTACH)"),
        ("VACUUM", "cannot VACUUM"),
        ("VACUUM INTO 'other.db'", "cannot VACUUM"),
        ("PRAGMA query_only = OFF", "is refused (PRAGMA query_only)"),
        ("PRAGMA journal_mode = DELETE", "is refused (PRAGMA journal_mode)"),
        ("PRAGMA user_version = 7", "is refused (PRAGMA user_version)"),
        ("PRAGMA wal_checkpoint(TRUNCATE)", "is refused (PRAGMA wal_checkpoint)"),
        ("PRAGMA temp_store_directory = '/'", "is refused (PRAGMA temp_store_directory)"),
        ("SELECT load_extension('x')", "is refused (function load_extension)"),
        ("SELECT 1; DELETE FROM reports", "several statements"),
        ("", "has no result"),
        ("-- nothing", "has no result"),
        ("SELEC 1", 'near "SELEC": syntax error; docs/reference/store.md'),
        ("SELECT riskscore FROM reports", "no such column: riskscore"),
        ("SELECT ?", "cannot be run"),
        ("SELECT zeroblob(100000000)", "too big"),
    ],
)
def test_what_does_not_only_read_is_one_line_and_changes_nothing(store: Path, sql: str, message: str) -> None:
    before = query(store, "SELECT * FROM reports"), query(store, "SELECT * FROM sqlite_master")
    with pytest.raises(StoreError) as raised:
        list(Query(store, 30).run(sql))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (query(store, "SELECT * FROM reports"), query(store, "SELECT * FROM sqlite_master")) == before
    assert query(store, "PRAGMA user_version") == [(4,)]
    assert sorted(path.name for path in store.parent.glob("*.db")) == ["corevital.db"]


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
    ],
)
def test_a_long_query_is_ended_with_one_line(store: Path, sql: str) -> None:
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"^the query takes more than 0.3 s: narrow it, .* or raise --timeout$"):
        for _ in Query(store, 0.3).run(sql):
            pass
    assert time.monotonic() - start < 10


def test_an_interrupt_is_not_taken_for_the_time_limit(store: Path) -> None:
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(
            Query(store, 30).run("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n")
        )
