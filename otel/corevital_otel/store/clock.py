"""The time by which rows are too old. A wrong wall clock must not empty the store.

The wall clock is trusted while it agrees with the machine's steady clock (which cannot be set), with the file system's
clock and with the store's rows. Otherwise the earlier time counts until the wall clock has run steadily for a day.
Deleting rows a day late does no harm, and the bound on size always holds.
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
"""How long the wall clock must run steadily to be trusted."""
_PAUSE_S: Final = DAY_S
"""Time without a row that may be a step of the clock as well as a pause."""
_LONGEST_STEP_S: Final = 400 * DAY_S
"""A longer time without a row, between two rows of the store, is a pause: the server has run since."""

_logger = logging.getLogger("corevital.store")


def steady() -> float:
    """Seconds since the machine started, while it slept too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class AgeClock:
    """Decides which rows of a store are too old.

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
        self._from: tuple[float, float] | None = None  # where time is counted from while the wall clock is not trusted
        self._begun = False
        self._doubt = ""
        self._logged = False

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
            self._doubt = f"the last row seems {(now - last) / DAY_S:.0f} days old"
        elif last is not None and (before := _last_before_gap(connection, last)) is not None:
            self._from = (before, machine)
            self._doubt = f"there seems to be no row for {(last - before) / DAY_S:.0f} days until recently"
        self._begun = True

    def oldest(self, connection: sqlite3.Connection) -> float:
        """The time before which rows are too old, seconds since the epoch. Logs once if a doubtful clock keeps rows.

        Raises:
            sqlite3.Error: the store cannot be read.
        """
        wall = self._wall()
        oldest = self._now(wall) - self._retention_s
        if not self._logged and _has_rows(connection, oldest, wall - self._retention_s):
            self._logged = True
            _logger.warning(
                "the store %s keeps rows that seem too old until the clock has run steadily for a day (%s): check the "
                "clock, or delete them now with `corevital db prune`",
                self._path,
                self._doubt,
            )
        return oldest

    def _now(self, wall: float) -> float:
        """The current time: the earliest of the clocks."""
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
