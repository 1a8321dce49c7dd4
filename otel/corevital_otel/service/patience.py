"""The clock by which sequences are given up: it stops while records may be unread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MOST_A_TURN_S: Final = 0.6
"""A turn counts as this much at most, even if a starved machine or a burst of ends made it longer: what arrived
meanwhile gets a few turns to come out of the socket. A little more than an idle turn takes."""

_OVERLOAD_S: Final = 30.0
"""After this long without an empty socket the clock runs on: by then what a worker sent before a sequence's end is
read, and sequences whose records are lost must not be kept for ever."""


class Patience:
    """A clock that moves once per turn, after the socket was read, and not while more waits in it.

    Args:
        clock: real time, monotonic, seconds.
        grace_s: it starts after this long: workers take a moment to connect to a new hub.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, grace_s: float = 0.0) -> None:
        self._clock = clock
        self._read_at = self._empty_at = clock()
        self._begins_at = self._read_at + grace_s
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
        if at < self._begins_at:
            passed = 0.0
        self.now += min(max(passed, 0.0), _MOST_A_TURN_S)
        return self.now
