"""The store as the queue of spans that were not delivered: those of servers that have ended, and of this one."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from corevital_otel.store import files
from corevital_otel.store.files import StoreError
from corevital_otel.store.ledger import Ledger
from corevital_otel.store.outbox import ABANDONED_S, Outbox
from corevital_otel.store.rows import moment
from corevital_otel.store.senders import Senders

_PAGE: Final = 500
_QUEUED: Final = (
    "SELECT id, span_id, resource_id, created_at_utc, length(summary) + ifnull(length(series), 0) FROM reports "
    "WHERE export = 'queued'"
)


class Backlog(Outbox):
    """The spans of one store that are ``queued`` and in no server's exporter. What is given up becomes ``undelivered``.

    Args:
        path: the store's file.
        ledger: the spans that this server has under way.
        senders: the servers that share the store; None: not known, then an hour decides.
        now: the wall clock, seconds since the epoch; by default this moment.

    Raises:
        BusyError: another process is sending from it.
        StoreError: the file cannot be opened, or has another schema.

    Attributes:
        unreadable: damaged rows that were found.
    """

    def __init__(self, path: Path, ledger: Ledger, senders: Senders | None, now: float | None = None) -> None:
        self._now = time.time() if now is None else now
        self._ledger = ledger
        self._senders = senders
        self._tops: dict[int, int] = {}
        self._hour_ago = moment(int((self._now - ABANDONED_S) * 1e9))
        self.unreadable: list[int] = []
        super().__init__(path, self._now)

    def pages(self, size: int) -> Iterator[list[int]]:
        """See the base class."""
        return self._free(size)

    def found_damaged(self, row: int) -> None:
        """See the base class."""
        self.unreadable.append(row)

    def give_up(self, rows: Sequence[int]) -> int:
        """Send these rows no more. Returns how many were still queued.

        Raises:
            StoreError: that cannot be written.
        """
        gone = 0
        if not rows:
            return gone
        self._limit.restart()
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                for row in rows:
                    gone += self._connection.execute(
                        "UPDATE reports SET export = 'undelivered' WHERE id = ? AND export = 'queued'", [row]
                    ).rowcount
        except sqlite3.Error as error:
            raise StoreError(f"the store {self._path} cannot be written: {files.why(error)}") from None
        return gone

    def give_up_older(self, seconds: float) -> int:
        """Give up the spans whose requests ended longer ago. Returns how many."""
        before = moment(int((self._now - seconds) * 1e9))
        return sum(map(self.give_up, self._free(_PAGE, "AND created_at_utc < :before", {"before": before})))

    def give_up_beyond(self, most_bytes: int) -> int:
        """Give up the oldest until the rest takes so many bytes in the store. Returns how many."""
        gone, total, last = 0, 0, 2**63 - 1
        while rows := self._run(f"{_QUEUED} AND id < :last ORDER BY id DESC LIMIT {_PAGE}", {"last": last}):
            self.require_rising([*(row[0] for row in reversed(rows)), last])
            last = rows[-1][0]
            over = []
            for row, *facts, size in rows:
                if self._is_free(row, *facts):
                    total += size if isinstance(size, int) else 0
                    if total > most_bytes:
                        over.append(row)
            gone += self.give_up(over)
        return gone

    def _free(self, size: int, condition: str = "", values: dict[str, Any] | None = None) -> Iterator[list[int]]:
        """Rows that nobody else sends, oldest first."""
        last = -(2**63)
        query = f"{_QUEUED} AND id > :last {condition} ORDER BY id LIMIT :size"
        while rows := self._run(query, {"last": last, "size": size, **(values or {})}):
            self.require_rising([last, *(row[0] for row in rows)])
            last = rows[-1][0]
            free = [row for row, *facts, _ in rows if self._is_free(row, *facts)]
            # once more: one that was delivered meanwhile left the ledger after its row was written
            if free and (still := self._still_queued(free)):
                yield still

    def _still_queued(self, rows: Sequence[int]) -> list[int]:
        return [
            row
            for row in rows
            if self._run("SELECT 1 FROM reports WHERE id = :row AND export = 'queued'", {"row": row})
        ]

    def _is_free(self, row: int, span_id: object, resource: object, ended: object) -> bool:
        if span_id in self._ledger:
            return False
        if isinstance(ended, str) and ended < self._hour_ago:
            return True
        return self._senders is not None and isinstance(resource, int) and row <= self._top(self._senders, resource)

    def _top(self, senders: Senders, resource: int) -> int:
        """The last row that was written before no other process had this resource."""
        if resource not in self._tops:
            with senders.alone(resource) as alone:
                newest = self._run("SELECT max(id) FROM reports", {})[0][0] if alone else None
                self._tops[resource] = newest if isinstance(newest, int) else -(2**63)
        return self._tops[resource]
