"""Tables made on a GPU: three kernels, one copy and one event a step, in memory taken at the start.

A step's rows get a place in a ring, on the device and in pinned memory of the host alike. The two statistics kernels
write them when the logits are seen; when their tokens are known a third kernel writes those beside them, and all of it
is copied at once. Everything is queued on the engine's own stream, so that nothing has to be kept alive or waited for;
:mod:`corevital.steps.frame_thread` polls the event behind the copy.

Where an engine has no next step, the tokens of its last one do not come: the frame thread sends its rows alone, and
queues the copy itself, on that same stream.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Final

import torch

from corevital.frames.layout import REJECTED, TOP_K
from corevital.kernels import triton_gpu as kernels
from corevital.kernels.triton_gpu.tokens import BLOCK, token_kernel
from corevital.log import warn_once
from corevital.steps.step import LIKELIEST, POSITION, SLOT, STATISTICS, WORDS, Array, Kept, Numbers

_WIDTH: Final = WORDS + 3
"""Words of a row of a frame, and three for its token: see :class:`corevital.steps.step.SampledStep`."""

_SEGMENTS: Final = 32
"""The ring's parts: one is free again when nobody holds a table in it any more."""

_LARGEST: Final = 32
"""Steps of the largest size that a segment has room for, where memory allows: with all segments a thousand, so that the
ring holds the steps of the half second after which they leave, at half a millisecond each."""

_MOST_BYTES: Final = 64 << 20
"""Of the ring, on the device and on the host each; but at least two steps of the largest size fit."""

_STEPS: Final = 64
"""Of a segment at most: each has an event, made at the start."""

_WIDER: Final = 1024
"""Entries that logits may have beyond the model's vocabulary: padding, tokens that an adapter adds."""


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

    def take_events(self) -> None:
        """Make the events of all its steps. A device makes one when it is first recorded."""
        self.events = [torch.cuda.Event() for _ in range(_STEPS)]
        for event in self.events:
            event.record()


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
        return self._queued is None or bool(self._queued.query())

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
        """Find the tokens, see :class:`corevital.steps.step.SampledStep`, and queue the copy."""
        segment, rows = self._lease.segment, slice(self._start, self._stop)
        table, given = segment.words[rows], not isinstance(tokens, Kept)
        ids: Any = table
        if isinstance(tokens, list):
            segment.ids_array[rows] = tokens
            ids = segment.ids[rows]
        elif isinstance(tokens, torch.Tensor):
            ids = tokens
        if logits is not None:
            logits = _readable(logits)
        self._tables.find_tokens(logits, at, table, ids, None if given else tokens)  # type: ignore[arg-type]
        self.queue()
        return _Half(self, WORDS, _WIDTH)


class _Half:
    """Columns of a table. See :class:`corevital.steps.step.Table`."""

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
        rows: of a step at most, as far as that is known; a larger one may not be measured.
    """

    def __init__(self, device: torch.device, rows: int = 1024) -> None:
        size = max(rows, min(_LARGEST * rows, _MOST_BYTES // (_SEGMENTS * 4 * _WIDTH)))
        self.lock = threading.Lock()
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._rows, self._size = rows, size
        segments = [_Segment(size, device) for _ in range(max(2, min(_SEGMENTS, _MOST_BYTES // (size * 4 * _WIDTH))))]
        self._free = deque(segments)
        self.nbytes = sum(segment.words.nbytes for segment in segments)
        """Held on the device: the ring, and once it is warm what the kernels leave for each other."""
        self.pinned_nbytes: Final = sum(segment.host.nbytes + segment.ids.nbytes for segment in segments)
        """Held in pinned memory of the host; PyTorch may round each part up to a power of two."""
        self._widest = 0  # logits of a row; 0: any
        self._compiled: tuple[int, ...] = ()
        self._lease: _Lease | None = None
        self._stream: torch.cuda.Stream | None = None

    def warm_up(self, vocab: int) -> None:
        """Load and take all that steps of such logits will need: kernels, events, and room for the largest step.

        Raises:
            ValueError: the vocabulary is too large for the kernels.
        """
        if not kernels.holds(vocab, TOP_K):
            raise ValueError(f"{vocab} logits a row are more than the kernels hold")
        widest = vocab + _WIDER if kernels.holds(vocab + _WIDER, TOP_K) else vocab
        self._compiled, self._widest = kernels.variants(vocab, widest), widest
        self.nbytes += kernels.reserve(self._device, max(self._rows, 2), widest)
        if self._on_gpu:
            with kernels.current(self._device):
                for segment in self._free:
                    segment.take_events()
        known = torch.zeros((2, 2), dtype=torch.int32, device=self._device)
        places: list[tuple[Numbers, Numbers]] = [([0, 1], [0, 0])]
        for dtype in (torch.int32, torch.int64):  # of slots: engines' versions differ; positions are int64
            places.append((known[0].to(dtype), known[0].long()))
        for chunks in self._compiled:
            logits = torch.zeros((2, min(kernels.widest(chunks), widest)), dtype=torch.float32, device=self._device)
            for slots, positions in places:
                table = self.measure(logits, None, slots, positions)
                if table is not None:
                    table.tokens(logits, None, [0, 0] if isinstance(slots, list) else Kept(known, known[0]))

    def measure(
        self, logits: torch.Tensor, at: torch.Tensor | None, slots: Numbers, positions: Numbers
    ) -> GpuTable | None:
        """Queue the statistics of rows ``at`` of logits ``[R, vocab]``; None where they are too wide or many.

        Slots and positions are int32 or int64, as the engine has them: another dtype would be compiled for.
        """
        if self._widest and logits.shape[1] > self._widest:
            warn_once(
                "width",
                "nothing is measured: logits have %d entries, and the kernels were compiled for the model's vocabulary "
                "and some more, %d; another logits processor may have widened them",
                logits.shape[1],
                self._widest,
            )
            return None
        logits = _readable(logits)
        rows = logits.shape[0] if at is None else at.shape[0]
        table = self._place(rows)
        if table is None:
            return None
        segment, start = table._lease.segment, table._start
        words = segment.words[start : start + rows, STATISTICS:]
        which = kernels.every_row(self._device, rows) if at is None else at
        if isinstance(slots, list) or isinstance(positions, list):
            table.where, place = (slots, positions), None
        else:
            place = slots, positions
        kernels.write_stats(logits, which, rows, TOP_K, words, place, self._compiled)
        if self._on_gpu:
            self._stream = torch.cuda.current_stream(self._device)
        return table

    def _place(self, rows: int) -> GpuTable | None:
        if rows > self._size or rows == 0:
            return None
        lease = self._lease
        if lease is None or lease.used + rows > self._size or lease.steps == _STEPS:
            self._lease = lease = None  # its own segment may be the next free one
            if not self._free:
                return None
            self._lease = lease = _Lease(self._free)
        start = lease.used
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
        """Queue the third kernel; see :func:`corevital.kernels.triton_gpu.tokens.token_kernel`."""
        rows = table.shape[0]
        which = kernels.every_row(self._device, rows) if at is None else at
        source = table.view(torch.float32) if logits is None else logits  # not read; of the dtype compiled for
        known = table if kept is None else kept.known
        total = table if kept is None else kept.total
        with kernels.current(self._device):
            token_kernel[(-(-rows // BLOCK.value),)](
                rows, source, source.stride(0), which, max(source.shape[1], 1), 0 if logits is None else rows, table,
                table.stride(0), ids, known, known.stride(0), known.shape[1], total,
                SLOT=SLOT, POSITION=POSITION, LIKELIEST=LIKELIEST, TOKEN=WORDS, REJECTED=REJECTED, GIVEN=kept is None,
                **kernels.OPTIONS,
            )  # fmt: skip

    def on_stream(self) -> Any:
        """The engine's stream, whichever thread asks."""
        return torch.cuda.stream(self._stream)

    def record(self, segment: _Segment, number: int) -> torch.cuda.Event | None:
        """An event behind all that is queued; those of a segment are used again with it."""
        if not self._on_gpu:
            return None
        if not segment.events:
            segment.take_events()
        segment.events[number].record(self._stream)
        return segment.events[number]


def _readable(logits: torch.Tensor) -> torch.Tensor:
    """Logits that the compiled kernels read. An engine's are float32; those of another processor are widened."""
    return kernels.readable(logits if logits.dtype is torch.float32 else logits.float())
