"""Tables made on a GPU: three kernels, one copy and one event a step, in memory taken at the start.

A step's rows get a place in a ring, on the device and in pinned memory of the host alike. The two statistics kernels
write them when the logits are seen; when their tokens are known a third kernel writes those beside them, and all of it
is copied at once. Everything is queued on the engine's own stream, so that nothing has to be kept alive or waited for;
:mod:`corevital.engines.courier` polls the event behind the copy.

Where an engine has no next step, nobody settles its last one: the courier, which then sends the rows alone, queues the
copy itself, on that same stream.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Final

import torch

from corevital.engines.steps import LIKELIEST, POSITION, SLOT, STATISTICS, WORDS, Array, Kept, Numbers
from corevital.frames.record import REJECTED, TOP_K
from corevital.kernels import triton as kernels
from corevital.kernels.triton_tokens import BLOCK, token_kernel

_WIDTH: Final = WORDS + 3
"""Words of a row of a frame, and three for its token: see :class:`corevital.engines.steps.Step`."""

_SEGMENTS: Final = 32
"""The ring's parts: one is free again when nobody holds a table in it any more."""

_MOST_BYTES: Final = 64 << 20
"""Of the ring, on the device and on the host each."""


class _Segment:
    """A part of the ring. Where it is on the device, on the host, and there as numpy sees it; and its events."""

    def __init__(self, rows: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.words = torch.empty((rows, _WIDTH), dtype=torch.int32, device=device)
        self.host = torch.empty((rows, _WIDTH), dtype=torch.int32, pin_memory=pinned)
        self.array: Array = self.host.numpy()
        self.ids = torch.empty(rows, dtype=torch.int32, pin_memory=pinned)  # read by the kernel where they are
        self.ids_array: Array = self.ids.numpy()
        self.events: list[torch.cuda.Event] = []


class _Lease:
    """The segment in use. Its memory is given to other steps when the last table of it is gone."""

    __slots__ = ("_free", "segment", "steps", "used")

    def __init__(self, free: deque[_Segment]) -> None:
        self._free = free
        self.segment = free.popleft()
        self.used = self.steps = 0

    def __del__(self) -> None:
        self._free.append(self.segment)


class GpuTable:
    """A step's rows in the ring, and beside them their tokens: :attr:`rows`, and what :meth:`tokens` returns."""

    def __init__(self, tables: GpuTables, lease: _Lease, start: int, stop: int, number: int) -> None:
        self._tables = tables
        self._lease = lease
        self._start, self._stop, self._number = start, stop, number
        self._queued: torch.cuda.Event | None = None
        self._is_queued = False
        self.where: tuple[list[int], list[int]] | None = None

    @property
    def rows(self) -> _Half:
        """Their statistics. Not kept here: a cycle would keep the place in the ring until it is collected."""
        return _Half(self, 0, WORDS)

    @property
    def size(self) -> int:
        """Its rows."""
        return self._stop - self._start

    @property
    def arrived(self) -> bool:
        """Whether the copy that was queued last is done; queues one where there is none. Does not wait."""
        if not self._is_queued:
            self.queue()
        return self._queued is None or bool(self._queued.query())  # type: ignore[no-untyped-call]

    def queue(self) -> None:
        """Queue the copy to the host, of the tokens too where they are there. Any thread may call this."""
        segment, rows = self._lease.segment, slice(self._start, self._stop)
        with self._tables.lock, self._tables.on_stream():
            segment.host[rows].copy_(segment.words[rows], non_blocking=True)
            self._queued = self._tables.record(segment, self._number)
            self._is_queued = True

    def words(self, first: int, last: int) -> Array:
        """``[rows, last - first]`` int32 of what has arrived."""
        if not self._is_queued:
            self.queue()
        return self._lease.segment.array[self._start : self._stop, first:last]

    def tokens(self, logits: torch.Tensor | None, at: torch.Tensor | None, tokens: Numbers | Kept) -> _Half:
        """Find the tokens, see :class:`corevital.engines.steps.Step`, and queue the copy."""
        segment, rows = self._lease.segment, slice(self._start, self._stop)
        table, given = segment.words[rows], not isinstance(tokens, Kept)
        ids: Any = table
        if isinstance(tokens, list):
            segment.ids_array[rows] = tokens
            ids = segment.ids[rows]
        elif isinstance(tokens, torch.Tensor):
            ids = tokens
        if logits is not None:
            logits = kernels.readable(logits)
        self._tables.find_tokens(logits, at, table, ids, None if given else tokens)  # type: ignore[arg-type]
        self.queue()
        return _Half(self, WORDS, _WIDTH)


class _Half:
    """Columns of a table. See :class:`corevital.engines.steps.Table`."""

    __slots__ = ("_first", "_last", "_table")

    def __init__(self, table: GpuTable, first: int, last: int) -> None:
        self._table, self._first, self._last = table, first, last

    @property
    def size(self) -> int:
        """Its rows."""
        return self._table.size

    @property
    def words(self) -> Array:
        """``[rows, words]`` int32, the memory itself."""
        return self._table.words(self._first, self._last)

    @property
    def arrived(self) -> bool:
        """Whether ``words`` may be read. Does not wait."""
        return self._table.arrived


class GpuTables:
    """The ring of one device.

    Args:
        device: where the logits will be.
        rows: of a step at most, as far as that is known; a larger one is not measured.
    """

    def __init__(self, device: torch.device, rows: int = 1024) -> None:
        size = max(rows, min(4 * rows, _MOST_BYTES // (_SEGMENTS * 4 * _WIDTH)))
        self.lock = threading.Lock()
        self.lost = 0
        """Rows for which the ring had no room."""
        self._device = device
        self._size = size
        segments = max(2, min(_SEGMENTS, _MOST_BYTES // (size * 4 * _WIDTH)))
        self._free = deque(_Segment(size, device) for _ in range(segments))
        self.nbytes: Final = segments * size * 4 * _WIDTH
        """Of the ring, on the device and on the host each."""
        self._lease: _Lease | None = None
        self._stream: torch.cuda.Stream | None = None

    def warm_up(self, vocab: int) -> None:
        """Load and take all that steps of such logits will need: kernels, and room for the largest step."""
        kernels.reserve(self._device, self._size, vocab)
        logits = torch.zeros((2, vocab), dtype=torch.float32, device=self._device)
        slots = torch.zeros(2, dtype=torch.int32, device=self._device)
        known = torch.zeros((2, 2), dtype=torch.int32, device=self._device)
        for placed, tokens in (((slots, slots.long()), Kept(known, known[0])), (([0, 1], [0, 0]), [0, 0])):
            table = self.observe(logits, None, *placed)
            if table is not None:
                table.tokens(logits, None, tokens)

    def observe(
        self, logits: torch.Tensor, at: torch.Tensor | None, slots: Numbers, positions: Numbers
    ) -> GpuTable | None:
        """Queue the statistics of rows ``at`` of logits ``[R, vocab]``; None where the ring has no room."""
        if logits.dtype is not torch.float32 and logits.dtype is not torch.bfloat16:
            logits = logits.float()  # another processor's
        logits = kernels.readable(logits)
        rows = logits.shape[0] if at is None else at.shape[0]
        table = self._place(rows)
        if table is None:
            self.lost += rows
            return None
        segment, start = table._lease.segment, table._start
        words = segment.words[start : start + rows, STATISTICS:]
        on_host = isinstance(slots, list) or isinstance(positions, list)
        which = kernels.every_row(self._device, rows) if at is None else at
        # of the dtypes that warm-up has compiled for
        place = None if on_host else (slots.to(torch.int32), positions.long())  # type: ignore[union-attr]
        kernels.write_stats(logits, which, rows, TOP_K, words, place)
        if on_host:
            table.where = slots, positions  # type: ignore[assignment]
        if self._device.type == "cuda":
            self._stream = torch.cuda.current_stream(self._device)
        return table

    def _place(self, rows: int) -> GpuTable | None:
        if rows > self._size or rows == 0:
            return None
        if self._lease is None or self._lease.used + rows > self._size:
            self._lease = None
            if not self._free:
                return None
            self._lease = _Lease(self._free)
        lease, start = self._lease, self._lease.used
        lease.used += rows
        lease.steps += 1
        return GpuTable(self, lease, start, lease.used, lease.steps - 1)

    def find_tokens(
        self,
        logits: torch.Tensor | None,
        at: torch.Tensor | None,
        table: torch.Tensor,
        ids: torch.Tensor,
        kept: Kept | None,
    ) -> None:
        """Queue the third kernel; see :func:`corevital.kernels.triton_tokens.token_kernel`."""
        rows = table.shape[0]
        which = kernels.every_row(self._device, rows) if at is None else at
        source = table if logits is None else logits
        known = table if kept is None else kept.known
        total = table if kept is None else kept.total
        with kernels.current(self._device):
            token_kernel[(-(-rows // BLOCK.value),)](
                rows, source, source.stride(0), which, max(source.shape[1], 1), 0 if logits is None else rows, table,
                table.stride(0), ids, known, known.stride(0), known.shape[1], total,
                SLOT=SLOT, POSITION=POSITION, LIKELIEST=LIKELIEST, TOKEN=WORDS, REJECTED=REJECTED, GIVEN=kept is None,
            )  # fmt: skip

    def on_stream(self) -> Any:
        """The engine's stream, whichever thread asks."""
        return torch.cuda.stream(self._stream)

    def record(self, segment: _Segment, number: int) -> torch.cuda.Event | None:
        """An event behind all that is queued; those of a segment are used again with it."""
        if self._device.type != "cuda":
            return None
        while len(segment.events) <= number:
            segment.events.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
        segment.events[number].record(self._stream)
        return segment.events[number]
