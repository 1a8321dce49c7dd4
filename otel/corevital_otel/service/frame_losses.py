"""What was lost on the way to the hub: records that workers dropped, and foreign messages."""

from __future__ import annotations

from typing import Final

from corevital.frames.layout import Frame
from corevital.frames.receiver import Receiver
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss

_SENDERS: Final = 1024
"""Workers whose count of lost records is remembered; the least recent one is forgotten first."""

MOST_LOST: Final = 2**32
"""Records that a worker can have lost, or sequences that it can have run unobserved, between two frames; a larger count
is cut to this."""


class FrameLosses:
    """Counts them. Used by the hub's thread alone."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._dropped: dict[int, int] = {}  # sender -> records it had dropped at its last frame
        self._foreign: dict[Loss, int] = {}  # the receiver's counts when they were last passed on

    def __len__(self) -> int:
        return len(self._dropped)

    def count_dropped(self, frame: Frame) -> None:
        """Count what its sender has dropped since its frame before."""
        before = self._dropped.pop(frame.sender, 0)
        self._dropped[frame.sender] = max(frame.dropped, before)
        if len(self._dropped) > _SENDERS:
            del self._dropped[next(iter(self._dropped))]
        if frame.dropped > before:
            self._counters.count_loss(Loss.RECORD_QUEUE_FULL, min(frame.dropped - before, MOST_LOST))

    def count_foreign(self, receiver: Receiver) -> None:
        """Count frames that were not taken in since the call before, and what was not a frame."""
        before = self._foreign
        self._foreign = {
            Loss.FRAME_MALFORMED: receiver.malformed,
            Loss.FRAME_VERSION: receiver.other_version,
            Loss.FRAME_UNAUTHENTICATED: receiver.refused,
        }
        for loss, count in self._foreign.items():
            self._counters.count_loss(loss, count - before.get(loss, 0))
