"""Counts of our own losses and deliveries, by name and labels; thread-safe, in this process only."""

from __future__ import annotations

import threading
from collections import Counter

Labels = tuple[tuple[str, str], ...]


class Counters:
    """Monotonic counts, such as ``corevital.telemetry.dropped{what="span", why="queue_full"}``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, Labels]] = Counter()

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        """Raise a count; labels take few values each."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount

    def get(self, name: str, **labels: str) -> int:
        """Sum of the counts of ``name`` whose labels include these."""
        with self._lock:
            return sum(
                count
                for (found, its), count in self._counts.items()
                if found == name and labels.items() <= dict(its).items()
            )

    def snapshot(self) -> dict[tuple[str, Labels], int]:
        """All counts as they are now, by name and sorted labels."""
        with self._lock:
            return dict(self._counts)
