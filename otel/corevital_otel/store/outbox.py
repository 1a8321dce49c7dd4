"""Spans in the store that no collector has taken yet."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from corevital_otel.report import Series
from corevital_otel.store import schema
from corevital_otel.store.reader import StoreError
from corevital_otel.store.series import unpack

ABANDONED_S: Final = 3600.0
"""A server has a span in hand for minutes at most. One that still counts as queued so long after its end, in seconds,
was in a process that was killed."""

_UNSENT: Final = "(export = 'undelivered' OR (export = 'queued' AND end_ns < :abandoned))"


@dataclass(frozen=True, slots=True)
class UnsentSpan:
    """What there is of a span: its ids in hex, its times in nanoseconds since the epoch, its attributes and series.

    ``resource`` has the attributes of its resource; None where a version that did not keep them has written the row.
    """

    row: int
    model: str
    finish_reason: str
    trace_id: str
    span_id: str
    parent_span_id: str | None
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    series: Series | None
    resource: dict[str, Any] | None


class Outbox:
    """The unsent spans of one store. A file lock keeps two processes from sending the same ones.

    Args:
        path: the store's file.
        now: the wall clock, seconds since the epoch; by default this moment.

    Raises:
        StoreError: the file cannot be opened, has another schema, or is being sent from by another process.
    """

    def __init__(self, path: Path, now: float | None = None) -> None:
        self._path = path
        self._abandoned = int(((time.time() if now is None else now) - ABANDONED_S) * 1e9)
        # of its folder: SQLite loses its own locks where another descriptor of the file is closed
        self._lock = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StoreError(f"the store {path} is being sent from already: wait for the other process") from None
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> None:
        path = self._path
        try:
            self._connection = sqlite3.connect(path, timeout=5.0, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"the store {path} cannot be opened: {error}") from None
        try:
            if not schema.check(self._connection):
                raise StoreError(f"the store {path} is empty: serve some requests first")
        except (schema.SchemaError, sqlite3.Error) as error:
            self._connection.close()
            raise StoreError(f"the store {path} cannot be read: {error}") from None
        except StoreError:
            self._connection.close()
            raise

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        os.close(self._lock)

    def count(self) -> int:
        """How many there are."""
        rows = self._run(f"SELECT count(*) FROM reports WHERE {_UNSENT}", {"abandoned": self._abandoned})
        return int(rows[0][0])

    def batches(self, size: int) -> Iterator[list[UnsentSpan]]:
        """All of them, oldest first, in batches of at most ``size``."""
        last = 0
        while rows := self._run(
            "SELECT reports.id, model, finish_reason, trace_id, span_id, parent_span_id, start_ns, end_ns, summary, "
            "series, resources.attributes FROM reports LEFT JOIN resources ON resources.id = resource_id "
            f"WHERE reports.id > :last AND {_UNSENT} ORDER BY reports.id LIMIT :size",
            {"abandoned": self._abandoned, "last": last, "size": size},
        ):
            last = rows[-1][0]
            yield [_unsent(*row) for row in rows]

    def sent(self, span_ids: Sequence[str]) -> None:
        """These have been taken."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "UPDATE reports SET export = 'sent' WHERE span_id = ?", [(i,) for i in span_ids]
            )

    def _run(self, query: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"the store {self._path} cannot be read: {error}") from None


def _unsent(row: int, *values: Any) -> UnsentSpan:
    *columns, summary, series, resource = values
    model, reason, trace_id, span_id, parent_id, start_ns, end_ns = columns
    return UnsentSpan(
        row, model, reason, trace_id, span_id, parent_id, start_ns, end_ns,
        attributes=json.loads(summary),
        series=unpack(series) if series else None,
        resource=json.loads(resource) if resource else None,
    )  # fmt: skip
