"""Read-only SQL over a store. What would write, open another file or take too long is refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final

from corevital.text import printable
from corevital_otel.store.files import Limit, StoreError
from corevital_otel.store.reader import StoreReader

_READS: Final = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE)
_PRAGMAS: Final = ("page_count", "page_size", "freelist_count", "user_version", "table_list", "function_list")
_PRAGMAS_OF_A_NAME: Final = ("table_info", "table_xinfo", "index_list", "index_info", "index_xinfo")


class Query(StoreReader):
    """A query on one file.

    Args:
        path: the store's file.
        seconds: how long it may take.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(path)
        self._seconds = seconds
        self._refused = ""

    def run(self, sql: str) -> Generator[Sequence[Any], None, None]:
        """The names of the result's columns, then its rows. Take them at once: meanwhile the store's log grows.

        Raises:
            StoreError: the file is missing or unreadable; or the SQL is wrong, does not only read, or takes too long.
        """
        with self._connection() as (connection, _):
            connection.execute("PRAGMA query_only = ON")
            limit = Limit(connection, self._seconds)
            connection.set_authorizer(self._judge)
            try:
                cursor = connection.execute(sql)
                if cursor.description is None:
                    raise StoreError("the query has no result: write a SELECT")
                yield [name for name, *_ in cursor.description]
                yield from cursor
            except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
                if "interrupted" in str(error) and not limit.over:  # SQLite took it for the limit
                    raise KeyboardInterrupt from None
                raise StoreError(self._why(error)) from None

    def _why(self, error: Exception) -> str:
        if self._refused:
            return f"the query is refused ({self._refused}): it can only read this store; write a SELECT"
        if "interrupted" in str(error):
            return (
                f"the query takes more than {self._seconds:g} s: narrow it, such as by created_at_utc, which has an "
                "index, or raise --timeout"
            )
        if "one statement" in str(error):
            return "the query has several statements: write one SELECT"
        return f"the query cannot be run: {printable(error, 200)}; docs/reference/store.md lists tables and columns"

    def _judge(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        """SQLite asks for each thing that a statement does, before it runs."""
        if action in _READS or (action == sqlite3.SQLITE_FUNCTION and second != "load_extension"):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
            return (
                sqlite3.SQLITE_OK
            )  # SQLite, where it declares json_each to itself; it refuses a statement that does this
        if action == sqlite3.SQLITE_PRAGMA and (first in _PRAGMAS_OF_A_NAME or (first in _PRAGMAS and second is None)):
            return sqlite3.SQLITE_OK
        what = {
            sqlite3.SQLITE_PRAGMA: f"PRAGMA {first}",
            sqlite3.SQLITE_ATTACH: "ATTACH",
            sqlite3.SQLITE_FUNCTION: f"function {second}",
        }
        self._refused = self._refused or printable(what.get(action, "a change"), 60)
        return sqlite3.SQLITE_DENY
