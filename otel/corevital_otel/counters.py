"""Counts of losses and deliveries, by name and labels; thread-safe, for this process only."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from corevital_otel import conventions as names
from corevital_otel.losses import Loss

MOST: Final = 2**63 - 1
"""No count exceeds what an OTLP integer holds: a larger one would end the export of all metrics."""

Labels = tuple[tuple[str, str], ...]


class Counters:
    """Monotonic counts, such as ``corevital.telemetry.dropped{what="span", why="queue_full"}``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, Labels]] = Counter()

    def count_loss(self, loss: Loss, amount: int = 1) -> None:
        """Count something that was lost; ``amount`` 0 counts nothing."""
        if amount:
            self.add(names.DROPPED, amount, **loss.labels)

    def lost(self, loss: Loss) -> int:
        """How many were lost this way."""
        return self.get(names.DROPPED, **loss.labels)

    def losses(self) -> dict[tuple[str, str], int]:
        """What was lost so far, by what and why; only what was."""
        found = {loss.value: self.lost(loss) for loss in Loss}
        return {labels: count for labels, count in found.items() if count}

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        """Raise a count; labels take few values each. An ``amount`` of 0 makes the count exist."""
        with self._lock:
            key = name, tuple(sorted(labels.items()))
            self._counts[key] = min(self._counts[key] + amount, MOST)

    def get(self, name: str, **labels: str) -> int:
        """Sum of the counts of ``name`` whose labels include these."""
        with self._lock:
            return sum(
                count
                for (found, its), count in self._counts.items()
                if found == name and labels.items() <= dict(its).items()
            )

    def snapshot(self) -> dict[tuple[str, Labels], int]:
        """All current counts, by name and sorted labels."""
        with self._lock:
            return dict(self._counts)
