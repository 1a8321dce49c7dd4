"""The time that ages in the store are reckoned from. A wall clock that is wrong must not empty the store.

The wall clock is believed while it goes as the machine's steady clock does (which no one can set), as the file system's
does, and as the store's rows do. Otherwise the earlier reckoning counts, for a day at least: the wall clock has to go
evenly so long to be believed again. What is deleted a day too late harms nobody; the bound on size holds all the while.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from corevital_otel.store.rows import moment

DAY_S: Final = 86_400.0

_STEP_S: Final = 3600.0
"""Two clocks that differ by more disagree."""
_EVEN_S: Final = DAY_S
"""How long the wall clock has to go evenly to be believed."""
_PAUSE_S: Final = DAY_S
"""Time without a row that may be a step of the clock as well as a pause."""
_LONGEST_STEP_S: Final = 400 * DAY_S
"""A longer time without a row, between two rows of the store, is a pause: the server has run since."""

_logger = logging.getLogger("corevital.store")


def steady() -> float:
    """Seconds since the machine started, while it slept too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class AgeClock:
    """Tells which rows of a store are too old.

    Args:
        path: the store's file.
        retention_s: seconds that a row is kept.
        wall: the wall clock, seconds since the epoch.
        machine: the steady clock, seconds.
    """

    def __init__(
        self,
        path: Path,
        retention_s: float,
        wall: Callable[[], float] = time.time,
        machine: Callable[[], float] = steady,
    ) -> None:
        self._path = path
        self._retention_s = retention_s
        self._pause_s = min(_PAUSE_S, retention_s)
        self._wall, self._machine = wall, machine
        self._even_since = (wall(), machine())
        self._from: tuple[float, float] | None = None  # what is reckoned from while the wall clock is not believed
        self._begun = False
        self._doubt = ""
        self._told = False

    def begin(self, connection: sqlite3.Connection) -> None:
        """Compare the wall clock with the store's newest rows; once, before this process writes any.

        Raises:
            sqlite3.Error: it cannot be read.
        """
        if self._begun:
            return
        now, machine = self._even_since
        last = _last_before(connection, now + _STEP_S)
        if last is not None and now - last > self._pause_s:
            self._from = (last, machine)
            self._doubt = f"by it the last row is {(now - last) / DAY_S:.0f} days old"
        elif last is not None and (before := _last_before_gap(connection, last)) is not None:
            self._from = (before, machine)
            self._doubt = f"by it there was no row for {(last - before) / DAY_S:.0f} days until lately"
        self._begun = True

    def oldest(self, connection: sqlite3.Connection) -> float:
        """The time before which rows are too old, seconds since the epoch. Logs once where a clock holds that back.

        Raises:
            sqlite3.Error: the store cannot be read.
        """
        wall = self._wall()
        oldest = self._now(wall) - self._retention_s
        if not self._told and _has_rows(connection, oldest, wall - self._retention_s):
            self._told = True
            _logger.warning(
                "the store %s keeps rows that seem too old, until the clock has gone evenly for a day (%s): check the "
                "clock, or delete them at once by `corevital db prune`",
                self._path,
                self._doubt,
            )
        return oldest

    def _now(self, wall: float) -> float:
        """The time to reckon from: the earliest that any of the clocks says."""
        machine = self._machine()
        expected = self._even_since[0] + machine - self._even_since[1]
        if abs(wall - expected) > _STEP_S:
            self._doubt = f"it was set {(wall - expected) / 3600:+.0f} hours"
            if self._from is None:
                self._from = self._even_since
            self._even_since = (wall, machine)
        if self._from is not None and machine - self._even_since[1] >= _EVEN_S:
            self._from = None
        reckoned = wall if self._from is None else min(wall, self._from[0] + machine - self._from[1])
        files = _time_of_files(self._path.parent)
        if files is not None and wall - files > _STEP_S:
            self._doubt = f"it is {(wall - files) / 3600:.0f} hours ahead of the file system's"
            reckoned = min(reckoned, files)
        return reckoned


def _has_rows(connection: sqlite3.Connection, since: float, until: float) -> bool:
    if since >= until:
        return False
    try:
        bounds = moment(int(since * 1e9)), moment(int(until * 1e9))
    except (ValueError, OverflowError, OSError):
        return False
    found = connection.execute(
        "SELECT 1 FROM reports WHERE created_at_utc >= ? AND created_at_utc < ? LIMIT 1", bounds
    ).fetchone()
    return found is not None


def _last_before(connection: sqlite3.Connection, until: float) -> float | None:
    """When the newest row ended that did so before ``until``, seconds since the epoch; None: there is none."""
    try:
        bound = moment(int(until * 1e9))
    except (ValueError, OverflowError, OSError):
        return None
    found = connection.execute(
        "SELECT created_at_utc FROM reports WHERE created_at_utc < ? ORDER BY created_at_utc DESC LIMIT 1", (bound,)
    ).fetchone()
    return None if found is None else _seconds(found[0])


def _last_before_gap(connection: sqlite3.Connection, last: float) -> float | None:
    """The end of the row before a gap in the last day's rows that may be a step of the clock; None: there is none."""
    before = _last_before(connection, last - _EVEN_S)
    if before is None:
        return None
    first = connection.execute(
        "SELECT created_at_utc FROM reports WHERE created_at_utc >= ? ORDER BY created_at_utc LIMIT 1",
        (moment(int((last - _EVEN_S) * 1e9)),),
    ).fetchone()
    since = None if first is None else _seconds(first[0])
    if since is not None and _PAUSE_S < since - before < _LONGEST_STEP_S:
        return before
    return None


def _seconds(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def _time_of_files(folder: Path) -> float | None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
