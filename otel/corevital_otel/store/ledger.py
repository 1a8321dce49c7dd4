"""Spans of this process that are on their way, where the store keeps those that a backend does not take."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class Ledger:
    """Ids of spans that are in the exporter's queue, or whose delivery is not in the store yet.

    A span that is in no ledger and ``queued`` in the store waits there alone: it may be sent from there. Any thread may
    use it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: set[str] = set()

    def __contains__(self, span_id: object) -> bool:
        with self._lock:
            return span_id in self._under_way

    def begin(self, span_id: str) -> None:
        """Its row waits for the disk, and it is about to be queued."""
        with self._lock:
            self._under_way.add(span_id)

    def failed(self, span_ids: Iterable[str]) -> tuple[list[str], list[str]]:
        """The exporter gave them up. Returns those that the store keeps, and the others: it has no row of them."""
        kept: list[str] = []
        lost: list[str] = []
        with self._lock:
            for span_id in span_ids:
                (kept if span_id in self._under_way else lost).append(span_id)
            self._under_way.difference_update(kept)
        return kept, lost

    def noted(self, span_ids: Iterable[str]) -> None:
        """The store knows what became of them."""
        with self._lock:
            self._under_way.difference_update(span_ids)

    def row_lost(self, span_id: str) -> bool:
        """Its row will not be written. Returns whether the span is lost with it: the exporter gave it up before."""
        with self._lock:
            if span_id in self._under_way:
                self._under_way.remove(span_id)
                return False
            return True
