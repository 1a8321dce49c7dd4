"""Live sequences and their windows: the last records of each, before they are folded into its features.

Records come keyed by (sequence, output index), and a later one replaces an earlier one: a chunked prefill sends index 0
several times, a rejected draft is withdrawn, a preempted sequence resumes where it was. So the last indices of a
sequence stay open. When a record comes for an index beyond its window of :data:`WINDOW`, the oldest :data:`CHUNK` are
folded for good; a record for a folded index is too late.

All windows are entries of the same arrays, and what a few vectorised operations cost hardly depends on how many
sequences they are for. So a fold takes along the windows that would be due a few tokens later, and sequences that have
ended are measured together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from corevital.frames.layout import REJECTED, ROW, Source
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital.supported import CaptureMode
from corevital_otel.measure import features, loops, token_values
from corevital_otel.measure.thresholds import Thresholds
from corevital_otel.report import Admission, Features, Likeliest, Series

Array = npt.NDArray[Any]

CHUNK: Final = 32
WINDOW: Final = 2 * CHUNK + 8
"""The last ``CHUNK`` indices at least are open; a window may be folded up to eight indices before it must be."""
FURTHEST: Final = 8192
"""An index this far beyond a sequence's window counts as wrong and is dropped."""

_UNKNOWN: Final = -1
_RUNNING: Final = np.iinfo(np.int64).max
_FIRST_CAPACITY: Final = 64
_KEPT_CAPACITY: Final = 1024
"""Windows whose memory stays when the last one is closed: growing again would dominate the cost of short requests."""
_RAW: Final = np.dtype((np.void, ROW.itemsize))  # copies of rows as plain bytes are several times faster
_NO_FEATURES: Final = features.initial(1)[0]
_NO_LOOP: Final = loops.initial(1)[0]
SERIES: Final = (token_values.ENTROPY, token_values.SURPRISAL, token_values.MARGIN, token_values.TOPK_MASS)
"""The first columns of the per-token values."""
ALTERNATIVES: Final = 5
"""Of a place's likeliest tokens, so many are kept where content is stored."""
LIKELIEST: Final = np.dtype([("id", "<i4"), ("logprob", "<f4")])
_FORCED: Final = np.array([[0.0], [0.0], [1.0], [1.0], [-np.inf]], np.float32)
"""What is kept of a forced token, by column: its series has what the mask left; the last one tells it from others."""


@dataclass(slots=True, eq=False)
class LiveSequence:
    """One admitted sequence that has not been reported yet.

    Attributes:
        capture: the capture mode that applies.
        slot: its window, negative before its first record.
        source: where its logits were seen, None before its first record.
        outcome, tokens, finished_at: its end, once the frontend has reported it; ``tokens`` are the client's.
        facts: what the engine's core has sent of it.
        deadline: the next time at which it is looked at even if no record comes.
        columns: of the per-token values, those that are kept: those of its series if that may be wanted, all if its
            segments may be known, or none.
        chunks: folded per-token values ``[columns, CHUNK]``.
        likeliest: the likeliest tokens of the first folded chunks, ``[CHUNK, k]`` of :data:`LIKELIEST`.
        checksum: CRC-32 of the tokens folded, by which they are compared with the client's.
        unknown: folded tokens that no ``sampled`` record named.
        counted: tokens that are in :attr:`Windows.fresh`, or were.
    """

    key: int
    admitted: Admitted
    admission: Admission
    capture: CaptureMode
    columns: int = 0
    slot: int = -1
    source: Source | None = None
    outcome: Finished | None = None
    tokens: Array | None = None
    finished_at: float = 0.0
    facts: CoreFacts | None = None
    deadline: float = math.inf
    chunks: list[Array] = field(default_factory=list)
    likeliest: list[Array] = field(default_factory=list)
    checksum: int = 0
    unknown: int = 0
    counted: int = 0

    @property
    def length(self) -> int | None:
        """Tokens the client got; None while the sequence runs."""
        return None if self.tokens is None else len(self.tokens)


class Tails(NamedTuple):
    """What is still in the windows of ``S`` sequences, up to their last tokens; ``T`` are the longest's.

    Attributes:
        first, last: ``[S]`` output indices where a tail begins, and one beyond its end.
        chunk: the values; behind a sequence's own end nothing is observed.
        tokens: ``[S, T]`` int32 ids, negative where unknown.
        features: of the whole sequences.
        nan, inf: whether a row of the sequence had a NaN or +Inf among its logits.
        whole: every token of the client was observed, and nothing else was folded.
        exact: no surprisal in the tail is an estimate that a record still to come could replace.
        alarmed_at: output index at which the watched maximum crossed its threshold, negative: it did not.
    """

    first: list[int]
    last: list[int]
    chunk: token_values.Chunk
    tokens: Array
    features: list[Features]
    nan: list[bool]
    inf: list[bool]
    whole: list[bool]
    exact: list[bool]
    alarmed_at: list[int]


class Windows:
    """The windows of all sequences that have sent records.

    Memory is about 27 KiB a window; the arrays grow by doubling. Those of more than 1024 windows are freed when the
    last one is closed.

    Args:
        thresholds: of the flags.
        max_series_tokens: tokens kept of a series at most.
        likeliest_tokens: tokens of an output whose likeliest alternatives are kept at most.
    """

    def __init__(self, thresholds: Thresholds, max_series_tokens: int, likeliest_tokens: int = 0) -> None:
        self._likeliest_tokens = likeliest_tokens
        self._high_entropy_bits = thresholds.high_entropy_bits
        self._loop_tokens = thresholds.loop_tokens
        self._watch = thresholds.alarm and thresholds.alarm[1]
        self._max_series_tokens = max_series_tokens
        self.slot_of: dict[int, int] = {}
        self.fresh: Counter[str] = Counter()
        """Tokens folded since somebody cleared it, by model."""
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

    def looping_by_model(self) -> dict[str, int]:
        """Windows whose sequence runs and is in a repetition loop now, by the sequence's model."""
        return self._by_model(self._loops["looping"])

    def alarmed_by_model(self) -> dict[str, int]:
        """Windows whose sequence runs and has its alarm raised, by the sequence's model."""
        return self._by_model(self._features["alarmed_at"] >= 0)

    def alarmed(self) -> list[int]:
        """Keys of the sequences whose alarm is raised."""
        owners = (self._owner[slot] for slot in np.flatnonzero(self._features["alarmed_at"] >= 0).tolist())
        return [owner.key for owner in owners if owner is not None and owner.outcome is None]

    def _by_model(self, which: Array) -> dict[str, int]:
        owners = (self._owner[slot] for slot in np.flatnonzero(which).tolist())
        return Counter(owner.admitted.model for owner in owners if owner is not None and owner.outcome is None)

    def _allocate(self) -> None:
        self._owner: list[LiveSequence | None] = []
        self._free: list[int] = []
        self._row = np.empty((0, WINDOW), _RAW)
        self._row_index = np.empty((0, WINDOW), np.int64)  # which output index a place holds, or _UNKNOWN
        self._token_index = np.empty((0, WINDOW), np.int64)
        self._token = np.empty((0, WINDOW), np.int32)
        self._logprob = np.empty((0, WINDOW), np.float32)
        self._folded = np.empty(0, np.int64)  # tokens folded: index of the window's first
        self._missing = np.empty(0, np.int64)  # of those, tokens without a row
        self._length = np.empty(0, np.int64)  # tokens the client got, or _RUNNING
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
            "_length",
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

    def open(self, sequence: LiveSequence) -> None:
        """Give a sequence a window."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._row_index[slot] = self._token_index[slot] = _UNKNOWN
        self._folded[slot] = self._missing[slot] = 0
        self._length[slot] = _RUNNING if sequence.length is None else sequence.length
        self._features[slot] = _NO_FEATURES
        self._loops[slot] = _NO_LOOP
        self._owner[slot] = sequence
        self.slot_of[sequence.key] = sequence.slot = slot

    def close(self, sequence: LiveSequence) -> None:
        """Take a sequence's window back."""
        slot, sequence.slot = sequence.slot, -1
        self._owner[slot] = None
        self._loops["looping"][slot] = False
        self._free.append(slot)
        del self.slot_of[sequence.key]
        if not self.slot_of and self.capacity > _KEPT_CAPACITY:
            self._allocate()

    def finished(self, sequence: LiveSequence) -> None:
        """Note that a sequence's tokens are known."""
        if sequence.slot >= 0 and sequence.length is not None:
            self._length[sequence.slot] = sequence.length

    def ended(self, slots: Array) -> list[LiveSequence]:
        """Of these windows' sequences, the ones whose tokens are known."""
        ended = slots[self._length[slots] != _RUNNING]
        return [owner for slot in ended.tolist() if (owner := self._owner[slot]) is not None]

    def put_rows(self, slots: Array, rows: Array) -> tuple[int, int]:
        """Take in rows (:data:`ROW`), one a slot. Returns how many came too late, and how many have a wrong index."""
        return self._put(slots, rows, self._write_rows)

    def put_sampled(self, slots: Array, sampled: Array) -> tuple[int, int]:
        """The same for sampled tokens (:data:`SAMPLED`)."""
        return self._put(slots, sampled, self._write_sampled)

    def _put(self, slots: Array, records: Array, write: Callable[[Array, Array, Array], None]) -> tuple[int, int]:
        late = wild = 0
        index = records["index"].astype(np.int64)
        while len(slots):
            ahead = index - self._folded[slots]
            if ahead.min() >= 0 and ahead.max() < WINDOW:
                write(slots * WINDOW + index % WINDOW, index, records)
                break
            plausible = (ahead < FURTHEST) & (index < self._length[slots])  # what the client did not get folds nothing
            beyond = plausible & (ahead >= WINDOW)
            if beyond.any():
                due = slots[plausible & (ahead >= 2 * CHUNK)]
                self._due[due] = True
                alone = np.count_nonzero(self._due[slots]) == len(due)
                self._due[due] = False
                if alone:  # no other record here is for the chunks about to be folded
                    self._fold(np.unique(due))  # a sequence may have several records here
                    continue
            fits = (ahead >= 0) & (ahead < WINDOW)
            write((slots * WINDOW + index % WINDOW)[fits], index[fits], records[fits])
            late += int((ahead < 0).sum())
            wild += int((ahead >= FURTHEST).sum())
            slots, index, records = slots[beyond], index[beyond], records[beyond]
            if len(slots):
                self._fold(np.unique(slots))
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
        chunk, tokens, _ = self._read(slots, first, first + CHUNK)
        state = self._features[slots]
        features.fold(state, first, chunk, self._high_entropy_bits, watch=self._watch)
        self._features[slots] = state
        loops.advance(self._loops, slots, first, tokens, self._loop_tokens)
        self._missing[slots] += CHUNK - chunk.observed.sum(axis=1)
        self._folded[slots] = first + CHUNK

        series, all_columns = _kept(chunk, len(SERIES)), None
        unknown = (tokens < 0).sum(axis=1).tolist()
        counts = chunk.observed.sum(axis=1).tolist()
        for i, slot in enumerate(slots.tolist()):
            owner = self._owner[slot]
            if owner is None:  # a record's slot always has an owner
                continue
            owner.checksum = crc32(tokens[i].tobytes(), owner.checksum)
            owner.unknown += unknown[i]
            owner.counted += counts[i]
            self.fresh[owner.admitted.model] += counts[i]
            if owner.columns and first[i] < self._max_series_tokens:
                some = series
                if owner.columns > len(SERIES):
                    some = all_columns = _kept(chunk, owner.columns) if all_columns is None else all_columns
                owner.chunks.append(some[:, i].copy())
            if first[i] < self._likeliest_tokens:
                owner.likeliest.append(_likeliest(chunk, i))

    def _read(self, slots: Array, first: Array, last: Array) -> tuple[token_values.Chunk, Array, Array]:
        """Values and tokens of the output indices from ``first [S]`` up to ``last [S]``, as far as they are there.

        Returns:
            The chunk; ``[S, T]`` int32 token ids, negative where unknown; ``[S, T]`` bool, whether a ``sampled`` record
            named that token.
        """
        index = first[:, None] + np.arange((last - first).max())
        at = slots[:, None] * WINDOW + index % WINDOW
        observed = (self._row_index.reshape(-1)[at] == index) & (index < last[:, None])
        named = self._token_index.reshape(-1)[at] == index
        tokens = np.where(named, self._token.reshape(-1)[at], _UNKNOWN)
        if (self._length[slots] != _RUNNING).any():
            self._take_client_tokens(slots, first, tokens, named)
        logprobs = np.where(named, self._logprob.reshape(-1)[at], np.nan)
        rows = self._row.reshape(-1)[at].view(ROW)
        return token_values.measure(rows, observed, tokens, logprobs), tokens, named

    def _take_client_tokens(self, slots: Array, first: Array, tokens: Array, named: Array) -> None:
        """Once a sequence's end is known, the client's tokens are what counts."""
        for i, (slot, start) in enumerate(zip(slots.tolist(), first.tolist(), strict=True)):
            owner = self._owner[slot]
            if owner is not None and owner.tokens is not None:
                true = owner.tokens[start : start + tokens.shape[1]]
                named[i, : len(true)] &= tokens[i, : len(true)] == true
                tokens[i, : len(true)] = true

    def arrived(self, sequences: list[LiveSequence]) -> list[bool]:
        """Whether the rows of sequences that have ended are all there, but for those that are too late anyway."""
        slots = np.array([sequence.slot for sequence in sequences if sequence.slot >= 0], np.int64)
        first, length, held = self._folded[slots], self._length[slots], self._row_index[slots]
        there = ((held >= first[:, None]) & (held < length[:, None])).sum(axis=1)
        arrived = iter((there >= length - first).tolist())
        return [next(arrived) if sequence.slot >= 0 else sequence.length == 0 for sequence in sequences]

    def tails(self, sequences: list[LiveSequence]) -> Tails:
        """What has not been folded yet: up to a sequence's last token, or its last row while it runs.

        Does not change the windows, except that a sequence without one gets one, so that all go the same way.
        """
        for sequence in sequences:
            if sequence.slot < 0:
                self.open(sequence)
        slots = np.array([sequence.slot for sequence in sequences], np.int64)
        first, length = self._folded[slots], self._length[slots]
        held = self._row_index[slots]
        held[held >= length[:, None]] = _UNKNOWN  # what the client did not get does not count
        last = np.maximum(held.max(axis=1) + 1, first)
        chunk, tokens, named = self._read(slots, first, last)
        state = self._features[slots]
        features.fold(state, first, chunk, self._high_entropy_bits, last - first, self._watch)
        whole = (self._missing[slots] == 0) & (first + chunk.observed.sum(axis=1) == length)
        inexact: Array = np.any(chunk.estimated & ~named, axis=1)
        return Tails(
            first.tolist(),
            last.tolist(),
            chunk,
            tokens,
            features.summaries(state),
            state["nan"].tolist(),
            state["inf"].tolist(),
            whole.tolist(),
            (~inexact).tolist(),
            state["alarmed_at"].tolist(),
        )

    def last_folded(self, sequence: LiveSequence) -> Array:
        """The last of a sequence's folded tokens, ``[n]`` int32."""
        return loops.last_tokens(self._loops[sequence.slot], int(self._folded[sequence.slot]))

    def series(self, sequence: LiveSequence, tails: Tails, i: int, length: int) -> Series:
        """The series of a sequence, the ``i``-th of the tails; see :meth:`values`."""
        values = self.values(sequence, tails, i, length, len(SERIES))
        return Series(
            entropy=values[token_values.ENTROPY],
            surprisal=values[token_values.SURPRISAL],
            margin=values[token_values.MARGIN],
            topk_mass=values[token_values.TOPK_MASS],
        )

    def likeliest(self, sequence: LiveSequence, tails: Tails, i: int, length: int) -> Likeliest | None:
        """The likeliest tokens of a sequence, the ``i``-th of the tails, at the first places at most; None: not kept.

        There are fewer of an output that has chunks missing.
        """
        if not self._likeliest_tokens:
            return None
        parts = [*sequence.likeliest]
        if len(parts) * CHUNK == tails.first[i]:
            parts.append(_likeliest(tails.chunk, i)[: tails.last[i] - tails.first[i]])
        if not parts:
            return None
        found = np.concatenate(parts)[: min(length, self._likeliest_tokens)]
        return Likeliest(found["id"], found["logprob"])

    def values(self, sequence: LiveSequence, tails: Tails, i: int, length: int, columns: int) -> Array:
        """The first columns of the per-token values of a sequence, the ``i``-th of the tails: ``[columns, T]`` float32.

        At most ``max_series_tokens`` of them; NaN where one is not known. The confidence of a forced token is -inf.
        """
        parts = [part[:columns] for part in sequence.chunks]
        if len(parts) * CHUNK == tails.first[i]:
            parts.append(_kept(tails.chunk, columns, i)[:, 0, : tails.last[i] - tails.first[i]])
        values = np.full((columns, min(length, self._max_series_tokens)), np.nan, np.float32)
        if parts:
            known = np.concatenate(parts, axis=1)[:, : values.shape[1]]
            values[:, : known.shape[1]] = known
        return values


def _likeliest(chunk: token_values.Chunk, sequence: int) -> Array:
    """The likeliest tokens of one sequence of a chunk: ``[T, k]`` of :data:`LIKELIEST`."""
    assert chunk.rows is not None  # noqa: S101 - for the types: it was made of rows
    rows = chunk.rows[sequence]
    found = np.empty((len(rows), ALTERNATIVES), LIKELIEST)
    found["id"] = np.where(chunk.observed[sequence, :, None], rows["topk_ids"][:, :ALTERNATIVES], _UNKNOWN)
    found["logprob"] = rows["topk_logprobs"][:, :ALTERNATIVES]
    return found


def _kept(chunk: token_values.Chunk, columns: int, sequence: int | None = None) -> Array:
    """The first columns of a chunk, of all its sequences or one, as they are kept: ``[columns, S, T]`` float32."""
    some = slice(None) if sequence is None else slice(sequence, sequence + 1)
    values: Array = chunk.values[:columns, some].astype(np.float32)
    if chunk.forced is not None:
        values[:, chunk.forced[some]] = _FORCED[:columns]
    return values
