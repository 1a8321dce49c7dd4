"""Tables of the store. ``PRAGMA user_version`` is the schema's version; migrations only go forward."""

from __future__ import annotations

import sqlite3
from typing import Final

VERSION: Final = 4

_CREATE: Final = """
CREATE TABLE reports (
    id              INTEGER PRIMARY KEY,        -- in order of writing
    request_id      TEXT NOT NULL,              -- what the client sees; a request with n=2 has two rows
    sequence        INTEGER NOT NULL DEFAULT 0, -- number of the sequence within its request
    created_at_utc  TEXT NOT NULL,              -- end of the request, ISO 8601 with milliseconds
    model           TEXT NOT NULL,              -- the name it is served under
    finish_reason   TEXT NOT NULL,              -- stop, length, abort, and others that the engine has
    prompt_tokens   INTEGER NOT NULL,           -- cached ones included
    output_tokens   INTEGER NOT NULL,           -- returned to the client
    risk_score      REAL,                       -- 0 to 1; NULL: there is no score
    risk_level      TEXT NOT NULL,              -- low, medium, high, unknown
    risk_basis      TEXT NOT NULL,              -- prior, baseline, calibrated
    trace_id        TEXT NOT NULL,              -- 32 hex digits
    span_id         TEXT NOT NULL UNIQUE,       -- one row a span: writing a report again changes nothing
    flags           TEXT NOT NULL,              -- JSON array
    summary         TEXT NOT NULL,              -- JSON object: every attribute of the span
    series          BLOB,                       -- see above; NULL: not captured
    content         BLOB,                       -- the output's tokens as text, see above; NULL: not stored
    parent_span_id  TEXT,                       -- NULL: a root
    start_ns        INTEGER,                    -- of the span, since the epoch
    end_ns          INTEGER,                    -- the same
    resource_id     INTEGER,                    -- NULL: written by a version that did not keep the resource
    export          TEXT                        -- NULL: the span is not to be exported; else queued, sent, undelivered
);
CREATE TABLE resources (                        -- whose spans they are: one row a server process
    id              INTEGER PRIMARY KEY,        -- resource_id of `reports`
    attributes      TEXT NOT NULL UNIQUE        -- JSON object
);
CREATE INDEX reports_by_time ON reports (created_at_utc);
CREATE INDEX reports_by_request ON reports (request_id);
CREATE INDEX reports_unsent ON reports (export, id) WHERE export IN ('queued', 'undelivered');
"""

_BASELINE: Final = """
CREATE TABLE baseline (                         -- the last requests that the basis `baseline` has learned from
    id              INTEGER PRIMARY KEY,        -- in order of writing
    model           TEXT NOT NULL,              -- the name it is served under
    bucket          TEXT NOT NULL,              -- of the temperature
    signals         TEXT NOT NULL               -- JSON array, null where not known: see risk/baseline.py
);
CREATE INDEX baseline_by_bucket ON baseline (model, bucket, id);
"""

_MIGRATIONS: Final = {
    1: """
ALTER TABLE reports ADD COLUMN parent_span_id TEXT;
ALTER TABLE reports ADD COLUMN start_ns INTEGER;
ALTER TABLE reports ADD COLUMN end_ns INTEGER;
ALTER TABLE reports ADD COLUMN export TEXT;
CREATE INDEX reports_unsent ON reports (export, id) WHERE export IN ('queued', 'undelivered');
""",
    2: """
ALTER TABLE reports ADD COLUMN resource_id INTEGER;
CREATE TABLE resources (id INTEGER PRIMARY KEY, attributes TEXT NOT NULL UNIQUE);
"""
    + _BASELINE,
    3: "ALTER TABLE reports ADD COLUMN content BLOB;\n",
}
"""What turns a version into the next one."""


class SchemaError(RuntimeError):
    """The file's schema is not the one this version writes. Its text names the fix."""


class OlderSchemaError(SchemaError):
    """It is an older one, which a migration turns into ours."""

    def __init__(self, version: int) -> None:
        self.cause = f"its schema {version} is older than ours ({VERSION})"
        super().__init__(f"{self.cause}: run `corevital db migrate`")


def check(connection: sqlite3.Connection) -> bool:
    """Whether the file has our tables; False: it is new and empty. Changes nothing in it, and never migrates.

    Raises:
        SchemaError: the file has an older or newer schema, or belongs to another program.
    """
    # in one statement: another server may be creating them, and may commit between two
    both = "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"
    version, tables = connection.execute(both).fetchone()
    if version == VERSION:
        return True
    if version > VERSION:
        raise SchemaError(f"its schema {version} is newer than ours ({VERSION}): upgrade corevital or use another file")
    if version > 0:
        raise OlderSchemaError(version)
    if version < 0 or tables:
        raise SchemaError("it holds tables of another program: use another file")
    return False


def create(connection: sqlite3.Connection) -> None:
    """Create the tables in a new file; nothing, if another process was faster.

    Raises:
        SchemaError: as :func:`check`.
    """
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        if check(connection):
            return
        _run(connection, _CREATE + _BASELINE)
        connection.execute(f"PRAGMA user_version = {VERSION}")


def migrate(connection: sqlite3.Connection) -> tuple[int, int]:
    """Migrate a store to this version, in one transaction. Returns the versions before and after.

    Raises:
        SchemaError: the file is newer, or not ours.
    """
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if not 1 <= found < VERSION:
            check(connection)
            return found, found
        for version in range(found, VERSION):
            _run(connection, _MIGRATIONS[version])
        connection.execute(f"PRAGMA user_version = {VERSION}")
    return found, VERSION


def _run(connection: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            connection.execute(statement)
