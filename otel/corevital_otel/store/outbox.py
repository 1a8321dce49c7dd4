"""Spans in the store that no collector has accepted yet."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from corevital_otel import conventions as names
from corevital_otel.report import Series
from corevital_otel.store import decode, files, schema
from corevital_otel.store.files import Limit, StoreError

ABANDONED_S: Final = 3600.0
"""A server holds a span for minutes at most. One still queued this many seconds after its end was in a process that was
killed."""

_DAMAGED_INDEX: Final = "its index is damaged; restore a backup"
_UNSENT: Final = "(export = 'undelivered' OR (export = 'queued' AND end_ns < :abandoned))"
_COLUMNS: Final = ", ".join(decode.SpanColumns.model_fields)
_ROW: Final = (
    f"SELECT {_COLUMNS}, summary, series, resource_id IS NOT NULL, resources.attributes FROM reports "  # noqa: S608 - text of ours; values are bound
    "LEFT JOIN resources ON resources.id = resource_id WHERE reports.id = ?"
)
_TOKENS: Final = 100_000
"""Tokens of the series of one batch, about: as a span's events each takes some hundred bytes."""
_NEEDED: Final = (names.RISK_LEVEL, names.RISK_BASIS)
"""Attributes without which there is no span."""


class BusyError(StoreError):
    """Another process is sending the store's spans."""


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

    Attributes:
        damaged: damaged rows left out so far.
        damage: what is wrong with the first of them, in one line; "" if none.
    """

    def __init__(self, path: Path, now: float | None = None) -> None:
        self._path = path
        self.damaged = 0
        self.damage = ""
        self._abandoned = int(((time.time() if now is None else now) - ABANDONED_S) * 1e9)
        # of its folder: SQLite loses its own locks where another descriptor of the file is closed
        try:
            self._lock = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._error("opened", error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise BusyError(f"the store {path} is being sent by another process already: wait for it") from None
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> None:
        self._connection = files.connect(self._path, "rw", lambda error: self._error("opened", error))
        try:
            self._limit = Limit(self._connection)
            if not schema.check(self._connection):
                raise StoreError(f"the store {self._path} is empty: serve some requests first")
            files.require_tables(self._connection, "reports", "resources")
        except (schema.SchemaError, sqlite3.Error, ValueError, OverflowError) as error:
            self._connection.close()
            raise self._error("read", error) from None
        except StoreError:
            self._connection.close()
            raise

    def _error(self, done: str, error: Exception) -> StoreError:
        return StoreError(f"the store {self._path} cannot be {done}: {files.why(error)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        os.close(self._lock)

    def count(self) -> int:
        """How many there are, damaged rows included."""
        rows = self._run(f"SELECT count(id) FROM reports WHERE {_UNSENT}", {"abandoned": self._abandoned})  # noqa: S608 - text of ours; values are bound
        return int(rows[0][0])

    def batches(self, size: int) -> Iterator[list[UnsentSpan]]:
        """All of them, oldest first, in batches of at most ``size``, or of few with long series. Damaged rows are left
        out, and counted in :attr:`damaged`."""
        for rows in self.pages(size):
            batch: list[UnsentSpan] = []
            tokens = 0
            for row in rows:
                try:
                    span = self._read(row)
                except decode.Damage as error:
                    self.damaged += 1
                    self.damage = self.damage or f"row {row}, {error}"
                    self.found_damaged(row)
                    continue
                batch.append(span)
                tokens += 0 if span.series is None else len(span.series)
                if tokens > _TOKENS:
                    yield batch
                    batch, tokens = [], 0
            if batch:
                yield batch

    def pages(self, size: int) -> Iterator[list[int]]:
        """The rows of all of them, oldest first, at most ``size`` at a time."""
        last = -(2**63)
        while rows := self._run(
            f"SELECT id FROM reports WHERE id > :last AND {_UNSENT} ORDER BY id LIMIT :size",  # noqa: S608 - text of ours; values are bound
            {"abandoned": self._abandoned, "last": last, "size": size},
        ):
            self.require_rising([last, *(row for (row,) in rows)])
            last = rows[-1][0]
            yield [row for (row,) in rows]

    def require_rising(self, rows: Sequence[object]) -> None:
        """Make sure that these rows come one after the other.

        Raises:
            StoreError: they do not.
        """
        if not all(isinstance(row, int) for row in rows) or any(a >= b for a, b in pairwise(rows)):  # type: ignore[operator]
            raise StoreError(f"the store {self._path} cannot be read: {_DAMAGED_INDEX}")

    def found_damaged(self, row: int) -> None:
        """A row cannot be sent, now or later."""

    def sent(self, span_ids: Sequence[str]) -> None:
        """Note that these spans were sent.

        Raises:
            StoreError: that cannot be written.
        """
        self._limit.restart()
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany(
                    "UPDATE reports SET export = 'sent' WHERE span_id = ?", [(i,) for i in span_ids]
                )
        except sqlite3.Error as error:
            raise StoreError(
                f"{len(span_ids)} spans were sent, but the store {self._path} cannot note it ({files.why(error)}): "
                "the next run sends them again; make it writable"
            ) from None

    def _read(self, row: int) -> UnsentSpan:
        try:
            values = self._run_raw(_ROW, [row])
        except sqlite3.Error as error:
            if "interrupted" in str(error):
                raise self._error("read", error) from None
            raise decode.Damage(files.why(error)) from None
        if len(values) != 1:
            raise decode.Damage("its index is damaged")
        *columns, summary, series, has_resource, resource = values[0]
        attributes = decode.attributes(summary)
        if missing := next((name for name in _NEEDED if name not in attributes), None):
            raise decode.Damage(f"summary: {missing} is missing")
        return UnsentSpan(
            row,
            **decode.plain(decode.SpanColumns, columns),
            attributes=attributes,
            series=decode.unpacked(series),
            resource=decode.attributes(resource, "resource") if has_resource and resource is not None else None,
        )

    def _run(self, query: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        try:
            return self._run_raw(query, values)
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise self._error("read", error) from None

    def _run_raw(self, query: str, values: dict[str, Any] | list[Any]) -> list[tuple[Any, ...]]:
        self._limit.restart()
        return self._connection.execute(query, values).fetchall()
