"""Reads all rows of a store, oldest first, in constant memory and in short reads.

No read lasts longer than a page of keys or a row, so a server can keep writing: during a long one its write-ahead log
would grow. A row never changes but for its span's fate; rows added after the start are left out.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from corevital_otel.report import Series
from corevital_otel.store import decode, files
from corevital_otel.store.files import StoreError
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.rows import iso

_PAGE: Final = 500
_BEFORE: Final = -(2**63)


class RowColumns(decode.Columns):
    """The plain columns of a row, in the order of an export."""

    parent_span_id: Annotated[str, Field(max_length=4096)] | None
    start_ns: int | None
    end_ns: int | None


_SELECT: Final = f"SELECT {', '.join(RowColumns.model_fields)}, flags, summary, {{}} FROM reports WHERE id = ?"  # noqa: S608 - text of ours; values are bound
_SUMMARY: Final = "SELECT summary FROM reports WHERE id = ?"
_KEYS: Final = (
    "SELECT created_at_utc, id FROM reports "  # noqa: S608 - text of ours; values are bound
    f"WHERE (created_at_utc, id) > (?, ?) AND id <= ? ORDER BY created_at_utc, id LIMIT {_PAGE}"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the fields of :class:`RowColumns`, and the other columns decoded; ``series`` only if asked for.

    ``ended`` is ``created_at_utc`` as a time in UTC without a zone.
    """

    columns: dict[str, Any]
    ended: datetime
    flags: list[str]
    attributes: dict[str, Any]
    series: Series | None


class Scan(StoreReader):
    """All rows that a store has now, or those that ended within a time. They can be read several times.

    Args:
        path: the store's file.
        since: ended within this time; None: all.

    Raises:
        StoreError: the file is missing or unreadable.

    Attributes:
        total: how many rows there are at most: some may be deleted meanwhile.
    """

    def __init__(self, path: Path, since: timedelta | None = None) -> None:
        super().__init__(path)
        # a damaged row may have a number for its time: numbers come before texts
        self._start = (-math.inf if since is None else iso(datetime.now(UTC) - since), _BEFORE)
        with self._connection() as (connection, _):
            query = "SELECT count(*), (SELECT max(id) FROM reports) FROM reports WHERE created_at_utc >= ?"
            self.total, self._last = connection.execute(query, self._start[:1]).fetchone()

    def rows(self, *, series: bool = False) -> Iterator[Row]:
        """The rows, oldest first. Damaged ones are left out, and counted in :attr:`damaged`.

        Args:
            series: whether to decode the series.

        Raises:
            StoreError: the store became unreadable.
        """
        self.damaged, self.damage = 0, ""
        query = _SELECT.format("series" if series else "NULL")
        for number, values in self._values(query):
            try:
                if isinstance(values, decode.Damage):
                    raise values
                *columns, flags, summary, packed = values
                plain = decode.plain(RowColumns, columns)
                row = Row(
                    plain,
                    _time(plain["created_at_utc"]),
                    decode.flags(flags),
                    decode.attributes(summary),
                    decode.unpacked(packed),
                )
            except decode.Damage as error:
                self._leave_out(number, error)
                continue
            yield row

    def summaries(self) -> Iterator[object]:
        """The column ``summary`` of the rows, unchecked. Those that cannot be read are left out.

        Raises:
            StoreError: the store became unreadable.
        """
        for _, values in self._values(_SUMMARY):
            if not isinstance(values, decode.Damage):
                yield values[0]

    def _values(self, query: str) -> Iterator[tuple[object, tuple[Any, ...] | decode.Damage]]:
        """The result of a query for each row, by the row's number. A row deleted meanwhile is left out."""
        with self._connection(snapshot=False) as (connection, limit):
            key: tuple[Any, Any] = self._start
            seen = 0
            while True:
                limit.restart()
                page = connection.execute(_KEYS, (*key, self._last)).fetchall()
                if not page:
                    return
                key = page[-1]
                seen += len(page)
                if seen > self.total:  # an endless index, perhaps
                    raise StoreError(f"the store {self._path} cannot be read: its index is damaged; restore a backup")
                for _, number in page:
                    limit.restart()
                    try:
                        values = connection.execute(query, (number,)).fetchone()
                    except sqlite3.Error as error:
                        if "interrupted" in str(error):
                            raise
                        yield number, decode.Damage(files.why(error))
                        continue
                    if values is not None:
                        yield number, values


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError as error:
        raise decode.Damage(f"created_at_utc: {error}") from None
