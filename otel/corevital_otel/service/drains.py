"""Callers who wait until the sequences that had ended at their call are reported."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Set
from typing import Final

_LOOK_S: Final = 0.5
"""Between two looks whether the thread still runs."""


class Drain:
    """One caller."""

    def __init__(self) -> None:
        self.left: Set[int] | None = None
        """Keys; None: not looked at yet."""
        self.done = threading.Event()


class Drains:
    """Those who wait for a thread, in the order of their calls. Methods say which thread calls them."""

    def __init__(self) -> None:
        self._waiting: deque[Drain] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, timeout_s: float, wake: Callable[[], None], runs: Callable[[], bool]) -> bool:
        """Called by those who wait, never by the thread itself.

        Args:
            timeout_s: how long.
            wake: has the thread look.
            runs: whether the thread still does.

        Returns:
            Whether all are reported. False where the thread has ended meanwhile.
        """
        drain = Drain()
        self._waiting.append(drain)
        wake()
        deadline = time.monotonic() + timeout_s
        try:
            while runs() and (left := deadline - time.monotonic()) > 0 and not drain.done.wait(min(left, _LOOK_S)):
                pass
            return drain.done.is_set()
        finally:
            self._waiting.remove(drain)

    def here(self) -> list[Drain]:
        """Called by the thread before it takes in events: what these wait for has ended by then."""
        return list(self._waiting)

    def release(self, drains: list[Drain], ended: Set[int]) -> None:
        """Called by the thread once it has taken in what was there.

        Args:
            drains: what ``here`` returned.
            ended: keys of sequences that have ended and are not reported.
        """
        for drain in drains:
            drain.left = ended if drain.left is None else drain.left & ended
            if not drain.left:
                drain.done.set()
