"""Live sequences and their windows: the last records of each, before they are folded into its features.

Records come keyed by (sequence, output index), and a later one replaces an earlier one: a chunked prefill sends index 0
several times, a rejected draft is taken back, a preempted sequence begins again where it was. So the last
:data:`WINDOW` indices of a sequence stay open. When a record comes for an index beyond them, the oldest :data:`CHUNK`
are folded for good, together with those of all sequences that are due in the same frame; a record for a folded index
is too late.

All windows are entries of the same arrays, so that a frame of many sequences costs a few vectorised operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.record import REJECTED, ROW
from corevital_otel import features, loops
from corevital_otel.report import Series

Array = npt.NDArray[Any]

CHUNK: Final = 32
WINDOW: Final = 2 * CHUNK
FURTHEST: Final = 8192
"""An index this far beyond a sequence's window is not believed."""

_UNKNOWN: Final = -1
_FIRST_CAPACITY: Final = 64
_RAW: Final = np.dtype((np.void, ROW.itemsize))  # copies of rows as plain bytes are several times faster
_NO_FEATURES: Final = features.initial(1)[0]
_NO_LOOP: Final = loops.initial(1)[0]
_SERIES: Final = (features.ENTROPY, features.SURPRISAL, features.MARGIN, features.TOPK_MASS)


@dataclass(slots=True, eq=False)
class Sequence:
    """One admitted sequence that has not been reported yet.

    Attributes:
        capture: the capture mode that applies.
        slot: its window, negative before its first record.
        outcome, tokens, finished_at: its end, once the frontend has told; ``tokens`` are the client's.
        settled: all records that can still come have come, but for a log-probability.
        chunks: folded per-token values ``[4, CHUNK]`` if its series may be wanted.
        checksum: CRC-32 of the tokens folded, by which they are compared with the client's.
        unknown: folded tokens that no ``sampled`` record named.
    """

    key: int
    admitted: Admitted
    parent: Any
    capture: str
    slot: int = -1
    runner: str = ""
    outcome: Finished | None = None
    tokens: Array | None = None
    finished_at: float = 0.0
    settled: bool = False
    chunks: list[Array] = field(default_factory=list)
    checksum: int = 0
    unknown: int = 0


class Tail(NamedTuple):
    """The part of a sequence that is still in its window.

    Attributes:
        first: output index where it begins.
        chunk: its values, None if there are none.
        tokens: its token ids, negative where unknown.
        arrived: its rows are all there, up to the client's last token.
        exact: no surprisal in it is an estimate that a record still to come could replace.
    """

    first: int
    chunk: features.Chunk | None
    tokens: Array
    arrived: bool
    exact: bool


class Windows:
    """The windows of all sequences that have sent records.

    Memory is about 18 KiB a window; the arrays grow by doubling and start anew when the last window is closed.

    Args:
        high_entropy_bits: threshold of ``high_entropy_steps``.
        max_series_tokens: tokens kept of a series at most.
    """

    def __init__(self, high_entropy_bits: float, max_series_tokens: int) -> None:
        self._high_entropy_bits = high_entropy_bits
        self._max_series_tokens = max_series_tokens
        self.slot_of: dict[int, int] = {}
        self._allocate()

    def __len__(self) -> int:
        return len(self.slot_of)

    @property
    def capacity(self) -> int:
        """Windows there is memory for."""
        return len(self._folded)

    @property
    def looping(self) -> int:
        """Windows whose sequence is in a repetition loop now."""
        return int(np.count_nonzero(self._loops["looping"]))

    def _allocate(self) -> None:
        self._owner: list[Sequence | None] = []
        self._free: list[int] = []
        self._row = np.empty((0, WINDOW), _RAW)
        self._row_index = np.empty((0, WINDOW), np.int64)  # which output index a place holds, or _UNKNOWN
        self._token_index = np.empty((0, WINDOW), np.int64)
        self._token = np.empty((0, WINDOW), np.int32)
        self._logprob = np.empty((0, WINDOW), np.float32)
        self._folded = np.empty(0, np.int64)  # tokens folded: index of the window's first
        self._missing = np.empty(0, np.int64)  # of those, tokens without a row
        self._finished = np.empty(0, bool)
        self._due = np.empty(0, bool)  # scratch
        self._features = features.initial(0)
        self._loops = loops.initial(0)

    def _grow(self) -> None:
        old = self.capacity
        new = max(2 * old, _FIRST_CAPACITY)
        for name in (
            "_row",
            "_row_index",
            "_token_index",
            "_token",
            "_logprob",
            "_folded",
            "_missing",
            "_finished",
            "_due",
            "_features",
            "_loops",
        ):
            array = getattr(self, name)
            larger = np.zeros((new, *array.shape[1:]), array.dtype)
            larger[:old] = array
            setattr(self, name, larger)
        self._owner += [None] * (new - old)
        self._free += range(new - 1, old - 1, -1)

    def open(self, sequence: Sequence) -> None:
        """Give a sequence a window."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._row_index[slot] = self._token_index[slot] = _UNKNOWN
        self._folded[slot] = self._missing[slot] = 0
        self._finished[slot] = sequence.outcome is not None
        self._features[slot] = _NO_FEATURES
        self._loops[slot] = _NO_LOOP
        self._owner[slot] = sequence
        self.slot_of[sequence.key] = sequence.slot = slot

    def close(self, sequence: Sequence) -> None:
        """Take a sequence's window back."""
        slot, sequence.slot = sequence.slot, -1
        self._owner[slot] = None
        self._loops["looping"][slot] = False
        self._free.append(slot)
        del self.slot_of[sequence.key]
        if not self.slot_of and self.capacity > _FIRST_CAPACITY:
            self._allocate()

    def finished(self, sequence: Sequence) -> None:
        """Note that a sequence's tokens are known."""
        self._finished[sequence.slot] = True

    def put_rows(self, slots: Array, rows: Array) -> tuple[int, int]:
        """Take in rows (:data:`ROW`), one a slot; returns how many came too late, and how many are not believed."""
        return self._put(slots, rows, self._write_rows)

    def put_sampled(self, slots: Array, sampled: Array) -> tuple[int, int]:
        """The same for sampled tokens (:data:`SAMPLED`)."""
        return self._put(slots, sampled, self._write_sampled)

    def _put(self, slots: Array, records: Array, write: Callable[[Array, Array, Array], None]) -> tuple[int, int]:
        late = wild = 0
        index = records["index"].astype(np.int64)
        while len(slots):
            ahead = index - self._folded[slots]
            beyond = (ahead >= WINDOW) & (ahead < FURTHEST)
            full = slots[beyond]
            if len(full):
                self._due[full] = True
                alone = np.count_nonzero(self._due[slots]) == len(full)
                self._due[full] = False
                if alone:  # no other record here is for the chunks about to be folded
                    self._fold(full)
                    continue
            fits = (ahead >= 0) & (ahead < WINDOW)
            if fits.all():
                write(slots * WINDOW + index % WINDOW, index, records)
                break
            write((slots * WINDOW + index % WINDOW)[fits], index[fits], records[fits])
            late += int((ahead < 0).sum())
            wild += int((ahead >= FURTHEST).sum())
            slots, index, records = full, index[beyond], records[beyond]
            if len(full):
                self._fold(np.unique(full))
        return late, wild

    def _write_rows(self, at: Array, index: Array, rows: Array) -> None:
        self._row.reshape(-1)[at] = rows.view(_RAW)
        self._row_index.reshape(-1)[at] = index

    def _write_sampled(self, at: Array, index: Array, sampled: Array) -> None:
        rejected = sampled["token"] == REJECTED
        if rejected.any():
            gone, at = at[rejected], at[~rejected]
            row_index = self._row_index.reshape(-1)
            row_index[gone[row_index[gone] == index[rejected]]] = _UNKNOWN
            index, sampled = index[~rejected], sampled[~rejected]
        self._token.reshape(-1)[at] = sampled["token"]
        self._logprob.reshape(-1)[at] = sampled["logprob"]
        self._token_index.reshape(-1)[at] = index

    def _fold(self, slots: Array) -> None:
        """Fold the oldest chunk of each of these windows."""
        first = self._folded[slots]
        half = first // CHUNK % 2

        def chunks(array: Array) -> Array:
            return array.reshape(-1, 2, CHUNK)[slots, half]  # [S, CHUNK]

        index = first[:, None] + np.arange(CHUNK)
        observed = chunks(self._row_index) == index
        named = chunks(self._token_index) == index
        tokens = np.where(named, chunks(self._token), _UNKNOWN)
        if self._finished[slots].any():
            self._take_client_tokens(slots, first, tokens, named)
        logprobs = np.where(named, chunks(self._logprob), np.nan)
        chunk = features.measure(chunks(self._row).view(ROW), observed, tokens, logprobs)

        state = self._features[slots]
        features.fold(state, first, chunk, self._high_entropy_bits)
        self._features[slots] = state
        loop = self._loops[slots]
        loops.advance(loop, first, tokens)
        self._loops[slots] = loop
        self._missing[slots] += CHUNK - observed.sum(axis=1)
        self._folded[slots] = first + CHUNK

        series = chunk.values[: len(_SERIES)].astype(np.float32)
        unknown = (tokens < 0).sum(axis=1).tolist()
        for i, slot in enumerate(slots.tolist()):
            owner = self._owner[slot]
            if owner is None:  # a record's slot always has an owner
                continue
            owner.checksum = crc32(tokens[i].tobytes(), owner.checksum)
            owner.unknown += unknown[i]
            if owner.capture != "summary" and first[i] < self._max_series_tokens:
                owner.chunks.append(series[:, i].copy())

    def _take_client_tokens(self, slots: Array, first: Array, tokens: Array, named: Array) -> None:
        """Where a sequence has finished while its records lag behind, the client's tokens are what counts."""
        for i, slot in enumerate(slots.tolist()):
            owner = self._owner[slot]
            if owner is not None and owner.tokens is not None:
                true = owner.tokens[first[i] : first[i] + CHUNK]
                named[i, : len(true)] &= tokens[i, : len(true)] == true
                tokens[i, : len(true)] = true

    def tail(self, sequence: Sequence) -> Tail:
        """What has not been folded yet of a sequence: up to its last token, or its last row while it runs."""
        slot, wanted = sequence.slot, sequence.tokens
        if slot < 0:
            return Tail(0, None, np.empty(0, np.int32), wanted is not None and len(wanted) == 0, True)
        first = int(self._folded[slot])
        seen = int(self._row_index[slot].max()) + 1
        last = seen if wanted is None else min(seen, len(wanted))
        arrived = wanted is not None and len(wanted) <= max(last, first)
        if last <= first:
            return Tail(first, None, np.empty(0, np.int32), arrived, True)
        index = np.arange(first, last)
        at = index % WINDOW
        observed = self._row_index[slot, at] == index
        named = self._token_index[slot, at] == index
        tokens = np.where(named, self._token[slot, at], _UNKNOWN)
        if wanted is not None:
            named &= tokens == wanted[first:last]
            tokens = wanted[first:last]
        logprobs = np.where(named, self._logprob[slot, at], np.nan)
        rows = self._row[slot, at].view(ROW)
        chunk = features.measure(rows[None], observed[None], tokens[None], logprobs[None])
        exact = not (chunk.estimated[0] & ~named).any()
        return Tail(first, chunk, tokens, arrived and bool(observed.all()), exact)

    def faultless(self, sequence: Sequence, tail: Tail) -> bool:
        """Whether every token of the client was observed, and nothing else was folded."""
        wanted = sequence.tokens
        if wanted is None or not tail.arrived:
            return False
        if sequence.slot < 0:
            return True
        return bool(self._missing[sequence.slot] == 0) and tail.first <= len(wanted)

    def features_state(self, sequence: Sequence, tail: Tail) -> Array:
        """State of a sequence's features with its tail folded in, ``[1]``; the window's own is left as it is."""
        slot = sequence.slot
        state = features.initial(1) if slot < 0 else self._features[slot : slot + 1].copy()
        if tail.chunk is not None:
            features.fold(state, np.array([tail.first]), tail.chunk, self._high_entropy_bits)
        return state

    def loop_detector(self, sequence: Sequence) -> loops.LoopDetector:
        """A detector that has seen the folded tokens."""
        slot = sequence.slot
        if slot < 0:
            return loops.LoopDetector()
        return loops.LoopDetector(self._loops[slot : slot + 1].copy(), int(self._folded[slot]))

    def series(self, sequence: Sequence, tail: Tail, length: int) -> Series:
        """The per-token values of a sequence, at most ``max_series_tokens`` of them; NaN where one is not known."""
        parts = list(sequence.chunks)
        if tail.chunk is not None and len(parts) * CHUNK == tail.first:
            parts.append(tail.chunk.values[: len(_SERIES), 0].astype(np.float32))
        values = np.full((len(_SERIES), min(length, self._max_series_tokens)), np.nan, np.float32)
        if parts:
            known = np.concatenate(parts, axis=1)[:, : values.shape[1]]
            values[:, : known.shape[1]] = known
        return Series(
            entropy=values[features.ENTROPY],
            surprisal=values[features.SURPRISAL],
            margin=values[features.MARGIN],
            topk_mass=values[features.TOPK_MASS],
        )
