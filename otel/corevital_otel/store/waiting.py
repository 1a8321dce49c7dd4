"""What waits for the disk: rows, and fates of spans whose rows are on it. Not thread-safe."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Final

from corevital_otel.store.rows import Row

_MOST_FATES: Final = 200_000
"""Fates of rows that are on the disk, or unknown, that may wait. At most the spans that were on their way when the
store failed; the exporter's queue bounds those."""


class Waiting:
    """Rows in the order they came, bounded by number and memory, and fates of spans by their ids.

    A fate whose row waits goes into the row. One whose row has been dropped goes with it.

    Args:
        on_drop: called with each row that is dropped for want of room.
    """

    def __init__(self, on_drop: Callable[[Row], object] = lambda row: None) -> None:
        self._on_drop = on_drop
        self._rows: deque[Row] = deque()
        self._by_span: dict[str, Row] = {}
        self._bytes = 0
        self._taken: list[Row] = []
        self._fates: OrderedDict[str, str] = OrderedDict()
        self._dropped: OrderedDict[str, None] = OrderedDict()  # spans of dropped rows whose fates are still to come

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def taken(self) -> list[Row]:
        """Rows that are being written."""
        return self._taken

    @property
    def fates(self) -> int:
        """Fates that wait for a row on the disk."""
        return len(self._fates)

    def put(self, row: Row, most: int, most_bytes: int) -> int:
        """Add a row. Returns how many of the oldest were dropped for it."""
        self._append(row)
        if (fate := self._fates.pop(row.span_id, None)) is not None and row.export is not None:
            row.export = fate
        gone = 0
        while len(self._rows) > most or (self._bytes > most_bytes and len(self._rows) > 1):
            self._drop(self._popleft())
            gone += 1
        return gone

    def settle(self, span_ids: Iterable[str], fate: str) -> int:
        """Note the fate of spans. Returns how many older fates were dropped."""
        for span_id in span_ids:
            row = self._by_span.get(span_id)
            if row is not None:
                if row.export is not None:
                    row.export = fate
                if not row.writing:
                    continue
            elif span_id in self._dropped:
                del self._dropped[span_id]
                continue
            self._fates[span_id] = fate
        return _bound(self._fates)

    def take(self, most: int, most_bytes: int) -> None:
        """Take the oldest rows to write them: at least one, if there is one."""
        size = 0
        while self._rows and len(self._taken) < most and (not self._taken or size + self._rows[0].size <= most_bytes):
            row = self._popleft()
            row.writing = True
            size += row.size
            self._taken.append(row)

    def take_fates(self, most: int) -> dict[str, str]:
        """Take fates to write them. None of a row that is taken and not written yet."""
        return dict(self._fates.popitem(last=False) for _ in range(min(most, len(self._fates))))

    def written(self) -> None:
        """The rows that were taken are written: forget them."""
        for row in self._taken:
            if self._by_span.get(row.span_id) is row:
                del self._by_span[row.span_id]
        self._taken = []

    def give_back(self, fates: dict[str, str]) -> None:
        """What was taken is not written: it waits again."""
        for row in reversed(self._taken):
            row.writing = False
            self._rows.appendleft(row)
            self._bytes += row.size
        self._taken = []
        self._fates = OrderedDict({**fates, **self._fates})

    def rows(self) -> list[Row]:
        """All that are not written yet."""
        return [*self._taken, *self._rows]

    def clear(self) -> list[Row]:
        """Forget everything. Returns the rows."""
        lost = self.rows()
        self.__init__(self._on_drop)  # type: ignore[misc]
        return lost

    def _append(self, row: Row) -> None:
        self._rows.append(row)
        self._by_span[row.span_id] = row
        self._bytes += row.size

    def _popleft(self) -> Row:
        row = self._rows.popleft()
        self._bytes -= row.size
        return row

    def _drop(self, row: Row) -> None:
        if self._by_span.get(row.span_id) is row:
            del self._by_span[row.span_id]
        if row.export == "queued":
            self._dropped[row.span_id] = None
            _bound(self._dropped)
        self._on_drop(row)


def _bound(found: OrderedDict[str, str] | OrderedDict[str, None]) -> int:
    gone = max(len(found) - _MOST_FATES, 0)
    for _ in range(gone):
        found.popitem(last=False)
    return gone
