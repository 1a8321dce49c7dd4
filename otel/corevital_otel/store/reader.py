"""Finds reports in the store. Opens the file read-only, never creates one, and trusts nothing in it."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from corevital.text import cut, printable
from corevital_otel import conventions as names
from corevital_otel.report import Series
from corevital_otel.risk.baseline import WIDTH
from corevital_otel.store import decode, files, schema
from corevital_otel.store.content import Content
from corevital_otel.store.files import EmptyStoreError, Limit, StoreError
from corevital_otel.store.rows import iso

__all__ = ["EmptyStoreError", "StoreError", "StoreReader", "StoredReport", "ids_of"]

_COLUMNS: Final = ", ".join(decode.Columns.model_fields)
_PREFIXES: Final = ("", "chatcmpl-", "cmpl-")
"""What engines put before an id that a client has sent."""
_MOST_OF_A_REQUEST: Final = 1000
_MOST_LEARNED: Final = 300_000
_FORMER_WIDTH: Final = 6
"""Signals in a row of ``baseline`` that a version before 0.2 has written."""
_LAST: Final = "\U0010ffff"


def _has(column: str) -> str:
    """The condition that an attribute in a column of JSON has a value."""
    valid = f"CASE WHEN json_valid({column}) THEN {column} ELSE '{{}}' END"
    return f"EXISTS (SELECT 1 FROM json_each({valid}) WHERE key IN (?, ?) AND CAST(value AS TEXT) = ?)"  # noqa: S608 - text of ours; values are bound


def ids_of(request_id: str) -> tuple[str, ...]:
    """The ids in the store that a request's id can stand for.

    An id is also what a client sent as ``X-Request-Id``: engines put ``chatcmpl-`` or ``cmpl-`` before it. One that is
    longer than the store keeps is found by what it keeps.
    """
    return tuple(cut(prefix + request_id) for prefix in _PREFIXES)


@dataclass(frozen=True, slots=True)
class StoredReport:
    """One row; ``flags`` and ``summary`` decoded, ``series`` and ``content`` only if requested and kept."""

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
    content: Content | None = None

    @property
    def is_sampled(self) -> bool:
        """False where the request was kept only because it is bad: the others are a fair sample."""
        return self.summary.get(names.SAMPLED) is not False

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values, by the store's column names; unknown values of a series are null. Never its text."""
        row = asdict(replace(self, content=None))
        del row["content"]
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
        damaged: rows that the last query left out because they are damaged.
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
        between: tuple[datetime | None, datetime | None] = (None, None),
        attribute: tuple[str, str, str] | None = None,
        limit: int = 50,
    ) -> list[StoredReport]:
        """Reports that meet all conditions given, newest first, without their series. Damaged rows are left out.

        Args:
            since: ended within this time.
            risk_above: with a score above.
            flag: with this flag.
            models: of one of these; of any where there are none.
            between: ended from the first moment on, and before the second.
            attribute: name, the name it may have too, and value, as text, of an attribute of the span or of its
                resource.
            limit: at most so many.

        Raises:
            StoreError: the file is missing or unreadable, or has damaged rows only.
        """
        conditions: list[str] = []
        values: list[Any] = []
        if since is not None:
            conditions.append("created_at_utc >= ?")
            values.append(iso(datetime.now(UTC) - since))
        if risk_above is not None:
            conditions.append("risk_score > ?")
            values.append(risk_above)
        if flag is not None:
            valid = "CASE WHEN json_valid(flags) THEN flags ELSE '[]' END"
            conditions.append(f"EXISTS (SELECT 1 FROM json_each({valid}) WHERE value = ?)")  # noqa: S608 - text of ours; values are bound
            values.append(flag)
        if models:
            conditions.append(f"model IN ({', '.join('?' * len(models))})")
            values += models
        for moment, order in zip(between, (">=", "<"), strict=True):
            if moment is not None:
                conditions.append(f"created_at_utc {order} ?")
                values.append(iso(moment))
        if attribute is not None:
            conditions.append(
                f"({_has('summary')} OR resource_id IN (SELECT id FROM resources WHERE {_has('attributes')}))"  # noqa: S608 - text of ours; values are bound
            )
            values += attribute * 2
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        query = f"SELECT id FROM reports {where} ORDER BY created_at_utc DESC, id DESC"  # noqa: S608 - text of ours; values are bound
        return self._read(query, values, limit)

    def get(self, request_id: str) -> list[StoredReport]:
        """All sequences of the requests with this id (clients may repeat one), else of those whose id begins so.

        See :meth:`get_whole`.
        """
        first = cut(request_id)
        beginning = "SELECT id FROM reports WHERE request_id >= ? AND request_id < ? ORDER BY request_id, sequence, id"
        return self.get_whole(request_id) or self._read(beginning, [first, first + _LAST], _MOST_OF_A_REQUEST, "series")

    def get_whole(self, request_id: str, *, series: bool = True) -> list[StoredReport]:
        """All sequences of the requests with one of :func:`ids_of` this id.

        Damaged rows are left out.

        Args:
            request_id: the id.
            series: whether the series are decoded.

        Raises:
            StoreError: the file is missing or unreadable, or all such rows are damaged.
        """
        whole = "SELECT id FROM reports WHERE request_id IN (?, ?, ?) ORDER BY request_id, sequence, id"
        return self._read(whole, list(ids_of(request_id)), _MOST_OF_A_REQUEST, "series" if series else "NULL")

    def get_span(self, span_id: str) -> StoredReport | None:
        """The sequence of a span, with its series and text; None where there is none.

        Raises:
            StoreError: the file is missing or unreadable, or the row is damaged.
        """
        found = self._read("SELECT id FROM reports WHERE span_id = ?", [span_id], 1, "series", "content")
        return found[0] if found else None

    def count(self) -> int:
        """How many reports there are."""
        with self._connection() as (connection, _):
            return int(connection.execute("SELECT count(id) FROM reports").fetchone()[0])

    def undelivered(self) -> int:
        """How many spans no collector has accepted and no server still tries to send."""
        with self._connection() as (connection, _):
            return int(connection.execute("SELECT count(id) FROM reports WHERE export = 'undelivered'").fetchone()[0])

    def resource_values(self, name: str) -> set[str]:
        """The values, as text, that an attribute has in the resources of this store."""
        valid = "CASE WHEN json_valid(attributes) THEN attributes ELSE '{}' END"
        query = f"SELECT DISTINCT CAST(value AS TEXT) FROM resources, json_each({valid}) WHERE key = ?"  # noqa: S608 - text of ours; values are bound
        with self._connection() as (connection, _):
            return {value for (value,) in connection.execute(query, [name])}

    def learned(self) -> list[tuple[str, str, list[float]]]:
        """What the basis ``baseline`` has learned from, oldest first: model, temperature bucket, signals."""
        self.damaged, self.damage = 0, ""
        found = []
        with self._connection() as (connection, limit):
            # rows of an older version have other signals: they are skipped, and are not damage
            query = f"""SELECT model, bucket, signals FROM baseline
                WHERE NOT (json_valid(signals) AND json_array_length(signals) = {_FORMER_WIDTH})
                ORDER BY id DESC LIMIT ?"""  # noqa: S608 - text of ours; values are bound
            for row in connection.execute(query, [_MOST_LEARNED]):
                limit.restart()
                try:
                    found.append(decode.signals(row, WIDTH))
                except decode.Damage as error:
                    self._leave_out("?", error)
        return found[::-1]

    def _read(
        self, query: str, values: list[Any], most: int, series: str = "NULL", content: str = "NULL"
    ) -> list[StoredReport]:
        """The reports of a query for row ids. Each row is read alone: one that cannot be does not hide others."""
        self.damaged, self.damage = 0, ""
        found: list[StoredReport] = []
        seen: set[object] = set()
        with self._connection() as (connection, limit):
            for (row,) in connection.execute(query, values):
                if len(found) >= most:
                    break
                limit.restart()
                if row in seen:  # an endless index, perhaps
                    self._leave_out(row, decode.Damage("its index is damaged"))
                    break
                seen.add(row)
                try:
                    found.append(self._report(connection, row, series, content))
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

    def _report(self, connection: sqlite3.Connection, row: object, series: str, content: str) -> StoredReport:
        query = f"SELECT {_COLUMNS}, flags, summary, {series}, {content} FROM reports WHERE id = ?"  # noqa: S608 - text of ours; values are bound
        try:
            values = connection.execute(query, [row]).fetchone()
        except sqlite3.Error as error:
            if "interrupted" in str(error):
                raise
            raise decode.Damage(files.why(error)) from None
        if values is None:
            raise decode.Damage("its index is damaged")
        *columns, flags, summary, packed, text = values
        return StoredReport(
            **decode.plain(decode.Columns, columns),
            flags=decode.flags(flags),
            summary=decode.attributes(summary),
            series=decode.unpacked(packed),
            content=decode.text(text),
        )

    def _unopened(self, error: Exception) -> StoreError:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return EmptyStoreError(
                f"there is no store at {self._path}: serve some requests first, or name it with --db"
            )
        return StoreError(f"the store {self._path} cannot be opened: {files.why(error)}")

    @contextmanager
    def _connection(self, *, snapshot: bool = True) -> Iterator[tuple[sqlite3.Connection, Limit]]:
        connection = files.connect(self._path, "ro", self._unopened)
        try:
            limit = Limit(connection)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:  # a server has made the file and not written to it yet
                raise EmptyStoreError(f"the store {self._path} is empty: serve some requests first")
            if version != schema.VERSION:
                fix = "upgrade corevital" if version > schema.VERSION else "run `corevital db migrate`"
                raise StoreError(
                    f"the store {self._path} has schema {version}, this version reads {schema.VERSION}: "
                    f"{fix}, or name another file with --db"
                )
            files.require_tables(connection, "reports", "baseline", "resources")
            if snapshot:
                connection.execute("BEGIN")
            yield connection, limit
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise StoreError(
                f"the store {self._path} cannot be read: {files.why(error)}; restore a backup, or name another file"
            ) from None
        finally:
            connection.close()
