"""Keeps the store within its bounds in small steps, so that its writer never waits for long.

A step is one short transaction, or a few pages given back to the file system. Its size depends on how long
the last ones took. Between two steps others may write.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from corevital_otel.losses import Loss, LossCounter
from corevital_otel.risk.baseline import WINDOW
from corevital_otel.store import files
from corevital_otel.store.rows import moment

STEP_S: Final = 0.03
"""Seconds that a step takes, about."""
EVERY_S: Final = 60.0
"""Between two looks for rows that are too old."""

_MOST_ROWS: Final = 500
_MOST_PAGES: Final = 1000
_PATIENCE_S: Final = 10.0
"""How long other processes may delay a prune that a user waits for."""
_BUSY_MS: Final = 20
"""Milliseconds that a step waits for another process's transaction; it is taken again later."""
_LOG_BYTES: Final = 48 * 2**20
"""Size of the write-ahead log from which on nothing is deleted: a reader holds it, and deletions make it larger."""
_SLACK: Final = 4
"""The file keeps one page in so many free, for rows to come, where it is within its bound."""
_ROOM: Final = 50
"""Share of the bound that is made free at once where the store has reached it."""
_MOST_LEARNED: Final = 300_000
"""Rows of ``baseline`` in all: beyond what one server follows."""

_OLDEST: Final = "DELETE FROM reports WHERE id IN (SELECT id FROM reports ORDER BY id LIMIT ?)"
_TOO_OLD: Final = (
    "DELETE FROM reports WHERE id IN "
    "(SELECT id FROM reports WHERE created_at_utc < ? ORDER BY created_at_utc, id LIMIT ?)"
)
_UNSENT: Final = "SELECT count(*)"
_IF: Final = "WHERE export = 'queued' AND"
"""What turns one of these into the number of spans that go with it."""
_FORGET: Final = (
    "DELETE FROM baseline WHERE id IN (SELECT id FROM baseline WHERE model = ?1 AND bucket = ?2 AND id < "
    "(SELECT id FROM baseline WHERE model = ?1 AND bucket = ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3) LIMIT ?4)"
)
_FORGET_OLD: Final = (
    "DELETE FROM baseline WHERE id IN "
    "(SELECT id FROM baseline WHERE id <= (SELECT max(id) FROM baseline) - ?1 ORDER BY id LIMIT ?2)"
)


class Upkeep:
    """The upkeep of one store.

    Args:
        path: its file.
        max_bytes: size of its contents at most; None: no bound.
        oldest: returns the time before which rows are too old, seconds since the epoch; None: no bound.
        slack: free pages may stay in the file, for rows to come.
        counters: counts spans that are deleted while they wait to be sent; None: none wait.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int | None,
        oldest: Callable[[sqlite3.Connection], float] | None,
        *,
        slack: bool = True,
        counters: LossCounter | None = None,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._oldest = oldest
        self._slack = slack
        self._counters = counters
        self._rows, self._pages = _Pace(_MOST_ROWS), _Pace(_MOST_PAGES, 64)
        self._row_bytes = 0.0
        self._cutoff: str | None = None
        self._aged_at: float | None = None
        self._shrinking = self._vacuuming = self._given_back = False
        self._forget: dict[tuple[str, str], None] = {}
        self._forget_old = True
        self._least = 0
        self._log_tried_at = 0.0
        self.deleted = 0
        self.blocked_since: float | None = None  # by other processes, since when

    def learned(self, model: str, bucket: str) -> None:
        """Rows of ``baseline`` have been added."""
        self._forget[model, bucket] = None

    def due(self) -> float:
        """Seconds until there may be something to do."""
        if self._busy():
            return 0.0
        return 0.0 if self._aged_at is None else max(self._aged_at + EVERY_S - time.monotonic(), 0.0)

    def step(self, connection: sqlite3.Connection) -> bool:
        """Do one step of what is due. Returns whether there is more.

        Raises:
            sqlite3.Error: the store cannot be written, for another reason than that another process is writing it.
        """
        now = time.monotonic()
        if self._aged_at is None or now - self._aged_at >= EVERY_S:
            self._aged_at = now
            self._cutoff = None if self._oldest is None else _text(self._oldest(connection))
            self._vacuuming = True
        used, free, size = _pages(connection)
        room = self._room(used, size)
        full = self._max_bytes is not None and used * size > self._max_bytes
        self._shrinking = (full or (self._shrinking and room > 0)) and used > self._least
        waits = int(connection.execute("PRAGMA busy_timeout").fetchone()[0])
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        try:
            has_room = self._log_has_room(connection)
            if not (self._shrinking or self._busy() or self._too_large(used, free, size)):
                return False
            if has_room:
                self._do(connection, used, free, size, room)
                self.blocked_since = None
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            has_room = False
        finally:
            connection.execute(f"PRAGMA busy_timeout = {waits}")
        if not has_room and self.blocked_since is None:
            self.blocked_since = now
        return self._shrinking or self._busy()

    def _do(self, connection: sqlite3.Connection, used: int, free: int, size: int, room: float) -> None:
        if self._shrinking:
            most = max(int(room / self._row_bytes), 1) if self._row_bytes else self._rows.amount
            gone = self._delete(connection, _OLDEST, self._rows, most)
            after = _pages(connection)[0]
            if gone:
                self._row_bytes = (used - after) * size / gone
            else:
                self._shrinking, self._least = False, used  # what is left is not rows
            self._vacuuming = True
        elif self._cutoff is not None:
            if self._delete(connection, _TOO_OLD, self._rows, _MOST_ROWS, self._cutoff) == 0:
                self._cutoff = None
        elif self._forget:
            model, bucket = next(iter(self._forget))
            if _run(connection, _FORGET, (model, bucket, WINDOW - 1, _MOST_ROWS)) == 0:
                del self._forget[model, bucket]
        elif self._forget_old:
            self._forget_old = _run(connection, _FORGET_OLD, (_MOST_LEARNED, _MOST_ROWS)) > 0
        elif self._too_large(used, free, size):
            start = time.monotonic()
            # a page a step of the statement, of which execute() takes one
            connection.executescript(f"PRAGMA incremental_vacuum({self._pages.amount})")
            self._pages.took(time.monotonic() - start)
            after_used, after_free, _ = _pages(connection)
            self._given_back = True
            self._vacuuming = after_used + after_free < used + free  # not where the file was made without auto_vacuum
        else:
            if self._given_back:  # the file itself gets smaller when the log is copied to it
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._vacuuming = self._given_back = False

    def _delete(self, connection: sqlite3.Connection, query: str, pace: _Pace, most: int, *values: str) -> int:
        start = time.monotonic()
        bounds = (*values, min(pace.amount, most))
        if self._counters is None:
            gone = _run(connection, query, bounds)
        else:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                unsent = connection.execute(query.replace("DELETE", _UNSENT, 1).replace("WHERE", _IF, 1), bounds)
                waiting = int(unsent.fetchone()[0])
                gone = connection.execute(query, bounds).rowcount
            loss = Loss.SPAN_TOO_OLD if query == _TOO_OLD else Loss.SPAN_BACKLOG_FULL
            self._counters.count_loss(loss, waiting)
        pace.took(time.monotonic() - start)
        self.deleted += gone
        return gone

    def _busy(self) -> bool:
        return bool(self._cutoff is not None or self._forget or self._forget_old or self._vacuuming)

    def _room(self, used: int, size: int) -> float:
        """Bytes over what the store is brought down to."""
        if self._max_bytes is None:
            return 0.0
        return used * size - self._max_bytes * (1 - 1 / _ROOM if self._slack else 1)

    def _too_large(self, used: int, free: int, size: int) -> bool:
        if not free:
            return False
        if not self._slack:
            return True
        over = self._max_bytes is not None and (used + free) * size > self._max_bytes
        return over or (self._vacuuming and free > (used + free) // _SLACK)

    def _log_has_room(self, connection: sqlite3.Connection) -> bool:
        log = files.beside(self._path, "-wal")
        if files.size(log) < _LOG_BYTES:
            return True
        if time.monotonic() - self._log_tried_at < 1.0:
            return False
        self._log_tried_at = time.monotonic()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return files.size(log) < _LOG_BYTES


class _Pace:
    """How much a step does, so that it takes about :data:`STEP_S`."""

    def __init__(self, most: int, amount: int = 1) -> None:
        self._most = most
        self.amount = amount

    def took(self, seconds: float) -> None:
        if seconds > 1.5 * STEP_S:
            self.amount = max(self.amount // 2, 1)
        elif seconds < STEP_S / 2:
            self.amount = min(self.amount * 2, self._most)


def prune(
    connection: sqlite3.Connection,
    path: Path,
    oldest: float | None,
    max_bytes: int | None,
    progress: Callable[[int], None] = lambda deleted: None,
) -> int:
    """Delete the oldest rows until the store is within the bounds there are, and give the room back.

    Args:
        connection: to the store; others may write meanwhile.
        path: its file.
        oldest: rows that ended before are deleted, seconds since the epoch.
        max_bytes: size of the contents at most.
        progress: called with the number deleted, after each step.

    Returns:
        How many rows went.

    Raises:
        sqlite3.Error: it cannot be written.
    """
    upkeep = Upkeep(path, max_bytes, None if oldest is None else lambda _: oldest, slack=False)
    while True:
        start = time.monotonic()
        more = upkeep.step(connection)
        progress(upkeep.deleted)
        if not more:
            return upkeep.deleted
        if upkeep.blocked_since is not None and time.monotonic() - upkeep.blocked_since > _PATIENCE_S:
            raise sqlite3.OperationalError("another process holds it: stop that process, or try again later")
        time.sleep(min(max(time.monotonic() - start, 0.001), STEP_S))  # others' turn


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process had the store at the time."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _run(connection: sqlite3.Connection, query: str, values: tuple[object, ...]) -> int:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        return connection.execute(query, values).rowcount


def _pages(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Pages in use, free ones, and the bytes of one."""
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return pages - free, free, size


def _text(seconds: float) -> str | None:
    try:
        return moment(int(seconds * 1e9))
    except (ValueError, OverflowError, OSError):
        return None  # before the first date
