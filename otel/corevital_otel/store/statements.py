"""The writer's SQL: many rows per statement.

Python releases its lock at each statement, and may get it back only after five milliseconds if another thread
computes: one statement per row would limit a busy server to 200 rows a second.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from corevital_otel.store.rows import COLUMNS, WIDTH

Signals = tuple[float, ...]

_ROWS: Final = 32
"""Rows a statement; others go alone, so that there are two statements to prepare."""
_IDS: Final = 500

_INSERT: Final = (
    f"INSERT INTO reports ({COLUMNS}) VALUES {{}} ON CONFLICT (span_id) DO UPDATE SET export = excluded.export "  # noqa: S608 - text of ours; values are bound
    "WHERE reports.export = 'queued' AND excluded.export IN ('sent', 'undelivered')"
)
_ROW: Final = f"({', '.join('?' * WIDTH)})"
_SETTLE: Final = "UPDATE reports SET export = ? WHERE export IN ('queued', 'undelivered') AND span_id IN ({})"
_LEARN: Final = "INSERT INTO baseline (model, bucket, signals) VALUES {}"

ROW_ERRORS: Final = (
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.IntegrityError,
    sqlite3.DataError,
)
"""What a report raises that SQLite cannot take. Trying again would not help, and would hold up all others."""


def resource_id(connection: sqlite3.Connection, attributes: str) -> int:
    """The row of a resource, which is made where there is none.

    Raises:
        sqlite3.Error: the store cannot be written.
    """
    query = "SELECT id FROM resources WHERE attributes = ?"
    found = connection.execute(query, (attributes,)).fetchone()
    if found is None:
        connection.execute("INSERT OR IGNORE INTO resources (attributes) VALUES (?)", (attributes,))
        found = connection.execute(query, (attributes,)).fetchone()
    return int(found[0])


def insert(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> list[tuple[int, Exception]]:
    """Write rows in one transaction. One whose span is there already changes nothing but that span's fate.

    Args:
        connection: to the store.
        rows: the values of :data:`corevital_otel.store.rows.COLUMNS`.

    Returns:
        The places of rows that SQLite cannot hold, and why; all others are written.

    Raises:
        sqlite3.Error: the store cannot be written.
    """
    try:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for part in _parts(rows, _ROWS):
                many = _INSERT.format(", ".join([_ROW] * len(part)))
                connection.execute(many, [value for row in part for value in row])
        return []
    except ROW_ERRORS:
        pass
    faulty: list[tuple[int, Exception]] = []
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for place, row in enumerate(rows):
            try:
                connection.execute(_INSERT.format(_ROW), row)
            except ROW_ERRORS as error:
                faulty.append((place, error))
    return faulty


def settle(connection: sqlite3.Connection, fates: Mapping[str, str]) -> None:
    """Write the fates of spans, by their ids. A span that has been sent stays so.

    Raises:
        sqlite3.Error: the store cannot be written.
    """
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for fate in dict.fromkeys(fates.values()):
            ids = [span_id for span_id, its in fates.items() if its == fate]
            for part in _parts(ids, _IDS):
                connection.execute(_SETTLE.format(", ".join("?" * len(part))), [fate, *part])


def learn(connection: sqlite3.Connection, learned: Mapping[tuple[str, str], Sequence[Signals]]) -> None:
    """Write what the basis ``baseline`` has learned, by model and bucket.

    Raises:
        sqlite3.Error: the store cannot be written.
    """
    rows = [(model, bucket, _signals(signals)) for (model, bucket), their in learned.items() for signals in their]
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for part in _parts(rows, _ROWS):
            many = _LEARN.format(", ".join(["(?, ?, ?)"] * len(part)))
            connection.execute(many, [value for row in part for value in row])


def _signals(signals: Signals) -> str:
    return f"[{', '.join(repr(float(value)) if math.isfinite(value) else 'null' for value in signals)}]"


def _parts(found: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Parts of ``size``, then single ones."""
    whole = len(found) - len(found) % size
    for start in range(0, whole, size):
        yield found[start : start + size]
    for start in range(whole, len(found)):
        yield found[start : start + 1]
