"""Holds frames that arrive before their sequences: a worker and its engine core have separate connections.

A frame waits until its sequences are known, and so do later frames of the same worker, which keeps them in order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from corevital.frames.layout import Frame

_WAIT_S: Final = 2.0
"""How long a frame waits. Afterwards its sequences count as unknown."""

_MOST: Final = 512
"""Frames that may wait, 128 MiB."""


class EarlyFrames:
    """Releases frames whose sequences are known. Not thread-safe.

    Args:
        is_known: whether all sequences with these keys are admitted.
        clock: seconds, monotonic.
    """

    def __init__(self, is_known: Callable[[set[int]], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._is_known = is_known
        self._clock = clock
        self._waiting: dict[int, deque[tuple[float, Frame]]] = {}  # by sender
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def ready(self, frames: Iterable[Frame]) -> list[Frame]:
        """The frames, of these and of those that wait, to be read now."""
        now = self._clock()
        for frame in frames:
            self._waiting.setdefault(frame.sender, deque()).append((now, frame))
            self._count += 1
        found = []
        for sender, queue in list(self._waiting.items()):
            while queue and (self._count > _MOST or now - queue[0][0] >= _WAIT_S or self._is_known(_keys(queue[0][1]))):
                found.append(queue.popleft()[1])
                self._count -= 1
            if not queue:
                del self._waiting[sender]
        return found


def _keys(frame: Frame) -> set[int]:
    return set(frame.rows["key"].tolist()) | set(frame.sampled["key"].tolist())
