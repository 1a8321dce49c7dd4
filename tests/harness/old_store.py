"""A store of corevital 0.1, whose schema was 3."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from tests.conftest import make_report

from corevital_otel.counters import Counters
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

SCHEMA_OF_0_1 = """
CREATE TABLE reports (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, sequence INTEGER NOT NULL DEFAULT 0, created_at_utc TEXT NOT NULL,
    model TEXT NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    risk_score REAL, risk_level TEXT NOT NULL, risk_basis TEXT NOT NULL, trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL UNIQUE, flags TEXT NOT NULL, summary TEXT NOT NULL, series BLOB, parent_span_id TEXT,
    start_ns INTEGER, end_ns INTEGER, resource_id INTEGER, export TEXT
);
CREATE TABLE resources (id INTEGER PRIMARY KEY, attributes TEXT NOT NULL UNIQUE);
CREATE INDEX reports_by_time ON reports (created_at_utc);
CREATE INDEX reports_by_request ON reports (request_id);
CREATE INDEX reports_unsent ON reports (export, id) WHERE export IN ('queued', 'undelivered');
CREATE TABLE baseline (id INTEGER PRIMARY KEY, model TEXT NOT NULL, bucket TEXT NOT NULL, signals TEXT NOT NULL);
CREATE INDEX baseline_by_bucket ON baseline (model, bucket, id);
PRAGMA user_version = 3;
PRAGMA journal_mode = WAL;
"""


def store_of_0_1(path: Path, count: int) -> None:
    """Make a store as 0.1 left it, with so many requests, ``old-0`` and further ones."""
    new = path.with_name("new.db")
    writer = StoreWriter(new, 36500, 1024, Counters())
    for number in range(count):
        ids = SpanIds(f"{number + 1:032x}", f"{number + 1:016x}")
        writer.put(record_of(make_report(request_id=f"old-{number}", end_ns=time.time_ns()), ids))
    writer.close(20)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.executescript(SCHEMA_OF_0_1)
        columns = ", ".join(name for _, name, *_ in connection.execute("PRAGMA table_info(reports)"))
        connection.execute("ATTACH ? AS new", [str(new)])
        connection.execute(f"INSERT INTO reports ({columns}) SELECT {columns} FROM new.reports")  # noqa: S608 - names of our own columns
    for file in path.parent.glob("new.db*"):
        file.unlink()
