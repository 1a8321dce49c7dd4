"""Counts of our own losses and deliveries, by name and labels; thread-safe, in this process only."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

MOST: Final = 2**63 - 1
"""No count goes beyond what an OTLP integer holds: one that did would end the export of all metrics."""

Labels = tuple[tuple[str, str], ...]


class Counters:
    """Monotonic counts, such as ``corevital.telemetry.dropped{what="span", why="queue_full"}``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, Labels]] = Counter()

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        """Raise a count; labels take few values each."""
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
        """All counts as they are now, by name and sorted labels."""
        with self._lock:
            return dict(self._counts)
