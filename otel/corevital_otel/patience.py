"""The time by which sequences are given up: it stands still while records may lie unread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MOST_A_TURN_S: Final = 0.6
"""However long a turn took (a starved machine, a burst of ends), it counts as so much at most: what arrived meanwhile
gets a few turns to come out of the socket. A little more than an idle turn takes."""

_OVERLOAD_S: Final = 30.0
"""A socket that has not been read empty for so long will not be soon. Time goes on then: what a worker has sent before
a sequence's end is read by then, and sequences whose records are lost must not be kept for ever."""


class Patience:
    """A clock that moves once a turn, when the socket has been read, and never while more waits in it.

    Args:
        clock: real time, monotonic, seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read_at = self._empty_at = clock()
        self.now = 0.0
        """Seconds of patience so far."""

    def turn(self, empty: bool) -> float:
        """The socket has just been read; ``empty``: to its end. Returns :attr:`now`."""
        at = self._clock()
        passed, self._read_at = at - self._read_at, at
        if empty:
            self._empty_at = at
        if at - self._empty_at < _OVERLOAD_S:
            passed = passed if empty else 0.0
        self.now += min(max(passed, 0.0), _MOST_A_TURN_S)
        return self.now
