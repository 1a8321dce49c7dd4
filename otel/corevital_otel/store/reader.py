"""Finds reports in the store. Opens the file read-only, never creates one, and trusts nothing in it."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from corevital.text import cut, printable
from corevital_otel.report import Series
from corevital_otel.risk.baseline import SIGNALS
from corevital_otel.store import decode, files, schema
from corevital_otel.store.files import Limit, StoreError
from corevital_otel.store.rows import iso

__all__ = ["StoreError", "StoreReader", "StoredReport"]

_COLUMNS: Final = ", ".join(decode.Columns.model_fields)
_PREFIXES: Final = ("", "chatcmpl-", "cmpl-")
"""What vLLM puts before an id that a client has sent."""
_MOST_OF_A_REQUEST: Final = 1000
_MOST_LEARNED: Final = 300_000
_LAST: Final = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class StoredReport:
    """One row; ``flags`` and ``summary`` decoded, ``series`` only where it was asked for and kept."""

    request_id: str
    sequence: int
    created_at_utc: str
    model: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    risk_score: float | None
    risk_level: str
    risk_basis: str
    trace_id: str
    span_id: str
    flags: list[str]
    summary: dict[str, Any]
    series: Series | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values, by the store's column names; unknown values of a series are null."""
        row = asdict(self)
        if self.series is not None:
            row["series"] = {
                name: [value if math.isfinite(value) else None for value in getattr(self.series, name).tolist()]
                for name in ("entropy", "surprisal", "margin", "topk_mass")
            }
        return row


class StoreReader:
    """Queries on one file.

    Args:
        path: the store's file.

    Attributes:
        damaged: rows that the last query left out, because somebody has edited or something has damaged them.
        damage: what was wrong with the first of them, in one line; "" if none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damaged = 0
        self.damage = ""

    def list_reports(
        self,
        *,
        since: timedelta | None = None,
        risk_above: float | None = None,
        flag: str | None = None,
        models: Collection[str] = (),
        limit: int = 50,
    ) -> list[StoredReport]:
        """Reports that meet all conditions given, newest first, without their series. Damaged rows are left out.

        Args:
            since: ended within this time.
            risk_above: with a score above.
            flag: with this flag.
            models: of one of these; of any where there are none.
            limit: at most so many.

        Raises:
            StoreError: the file is missing or unreadable, or has damaged rows only.
        """
        conditions: list[str] = []
        values: list[Any] = []
        if since is not None:
            conditions.append("created_at_utc >= ?")
            values.append(iso(datetime.now(timezone.utc) - since))
        if risk_above is not None:
            conditions.append("risk_score > ?")
            values.append(risk_above)
        if flag is not None:
            valid = "CASE WHEN json_valid(flags) THEN flags ELSE '[]' END"
            conditions.append(f"EXISTS (SELECT 1 FROM json_each({valid}) WHERE value = ?)")
            values.append(flag)
        if models:
            conditions.append(f"model IN ({', '.join('?' * len(models))})")
            values += models
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        query = f"SELECT id FROM reports {where} ORDER BY created_at_utc DESC, id DESC"
        return self._read(query, values, limit)

    def get(self, request_id: str) -> list[StoredReport]:
        """All sequences of the requests with this id (clients may repeat one), else of those whose id begins so.

        An id is also what a client sent as ``X-Request-Id``: vLLM puts ``chatcmpl-`` or ``cmpl-`` before it. One that
        is longer than the store keeps is found by what it keeps. The series are decoded. Damaged rows are left out.

        Raises:
            StoreError: the file is missing or unreadable, or all such rows are damaged.
        """
        order = "ORDER BY request_id, sequence, id"
        ids = [cut(prefix + request_id) for prefix in _PREFIXES]
        whole = f"SELECT id FROM reports WHERE request_id IN (?, ?, ?) {order}"
        beginning = f"SELECT id FROM reports WHERE request_id >= ? AND request_id < ? {order}"
        return self._read(whole, ids, _MOST_OF_A_REQUEST, "series") or self._read(
            beginning, [ids[0], ids[0] + _LAST], _MOST_OF_A_REQUEST, "series"
        )

    def count(self) -> int:
        """How many reports there are."""
        with self._connection() as (connection, _):
            return int(connection.execute("SELECT count(id) FROM reports").fetchone()[0])

    def undelivered(self) -> int:
        """How many spans no collector has taken, and nobody tries to send any more."""
        with self._connection() as (connection, _):
            return int(connection.execute("SELECT count(id) FROM reports WHERE export = 'undelivered'").fetchone()[0])

    def learned(self) -> list[tuple[str, str, list[float]]]:
        """What the basis ``baseline`` has learned from, oldest first: model, temperature bucket, signals."""
        self.damaged, self.damage = 0, ""
        found = []
        with self._connection() as (connection, limit):
            query = "SELECT model, bucket, signals FROM baseline ORDER BY id DESC LIMIT ?"
            for row in connection.execute(query, [_MOST_LEARNED]):
                limit.restart()
                try:
                    found.append(decode.signals(row, len(SIGNALS)))
                except decode.Damage as error:
                    self._leave_out("?", error)
        return found[::-1]

    def _read(self, query: str, values: list[Any], most: int, series: str = "NULL") -> list[StoredReport]:
        """The reports of a query for row ids. Each row is read alone: one that cannot be does not hide others."""
        self.damaged, self.damage = 0, ""
        found: list[StoredReport] = []
        seen: set[object] = set()
        with self._connection() as (connection, limit):
            for (row,) in connection.execute(query, values):
                if len(found) >= most:
                    break
                limit.restart()
                if row in seen:  # without an end, it may be
                    self._leave_out(row, decode.Damage("its index is damaged"))
                    break
                seen.add(row)
                try:
                    found.append(self._report(connection, row, series))
                except decode.Damage as error:
                    self._leave_out(row, error)
        if self.damaged and not found:
            raise StoreError(
                f"the store's {self._rows()} cannot be read ({self.damage}): restore a backup, or delete such rows"
            )
        return found

    def _rows(self) -> str:
        return "row" if self.damaged == 1 else f"{self.damaged} rows"

    def _leave_out(self, row: object, error: Exception) -> None:
        self.damaged += 1
        self.damage = self.damage or f"row {printable(row, 32)}, {error}"

    def _report(self, connection: sqlite3.Connection, row: object, series: str) -> StoredReport:
        query = f"SELECT {_COLUMNS}, flags, summary, {series} FROM reports WHERE id = ?"
        try:
            values = connection.execute(query, [row]).fetchone()
        except sqlite3.Error as error:
            if "interrupted" in str(error):
                raise
            raise decode.Damage(files.why(error)) from None
        if values is None:
            raise decode.Damage("its index is damaged")
        *columns, flags, summary, packed = values
        return StoredReport(
            **decode.plain(decode.Columns, columns),
            flags=decode.flags(flags),
            summary=decode.attributes(summary),
            series=decode.unpacked(packed),
        )

    def _unopened(self, error: Exception) -> StoreError:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return StoreError(f"there is no store at {self._path}: serve some requests first, or name it with --db")
        return StoreError(f"the store {self._path} cannot be opened: {files.why(error)}")

    @contextmanager
    def _connection(self) -> Iterator[tuple[sqlite3.Connection, Limit]]:
        connection = files.connect(self._path, "ro", self._unopened)
        try:
            limit = Limit(connection)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:  # a server has made the file and not written to it yet
                raise StoreError(f"the store {self._path} is empty: serve some requests first")
            if version != schema.VERSION:
                fix = "upgrade corevital" if version > schema.VERSION else "run `corevital db migrate`"
                raise StoreError(
                    f"the store {self._path} has schema {version}, this version reads {schema.VERSION}: "
                    f"{fix}, or name another file with --db"
                )
            files.require_tables(connection, "reports", "baseline")
            connection.execute("BEGIN")
            yield connection, limit
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise StoreError(f"the store {self._path} cannot be read: {files.why(error)}") from None
        finally:
            connection.close()
