"""Repetition in the sampled tokens: loops, templates, and the share that is repeated.

Four tokens that have occurred within the :data:`LAGS` tokens before are *repeated*, at the lag of their last
occurrence. The lags that occur most are the candidates for a period. At each of them the output is compared with
itself: a *stretch* is where at least two thirds of each period match, seen :data:`COPIES` times and with
:data:`LEAST_SPAN` matching tokens. Its columns, the places within a period, show what it is:

- no column changes: a loop, exact or with a few tokens jittered. Where more than one token in 32 differs from the
  period before, it has to be :data:`_JITTERED` tokens long, because a table of ones and zeros looks the same.
- one field changes (up to three columns side by side): a list such as "1. to be 2. to be". Rows that someone asked for
  look the same, so it takes :data:`NUMBERED_COPIES` copies to call it a loop; fewer where the length limit ended it.
- other columns change: a template, such as the records of a table. Not a fault.

A stretch that is short and ends before the output does is a refrain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LAGS: Final = 512
"""Longest period found, in tokens."""
COPIES: Final = 3
"""Times the period must have been seen; the first copy matches nothing."""
LEAST_SPAN: Final = 48
SHARE_SPAN: Final = 128
"""Tokens over which the repetition share is taken."""
NUMBERED_COPIES: Final = 24
"""Copies of a list in which one field changes that make a loop."""
NUMBERED_AT_LIMIT: Final = 9
"""The same where a limit ended the output within the list."""
HISTORY: Final = COPIES * LAGS
"""Tokens of a running sequence that are kept."""

_GRAM: Final = 4
_LEAK: Final = 4
"""What a token that does not match takes off the count of those that do."""
_CANDIDATES: Final = 4
_LEAST_REPEATED: Final = 8
"""Repeated tokens at a lag that make it a candidate."""
_WINDOW: Final = 12
"""Tokens of which two thirds have to match, where the period is shorter."""
_LATEST: Final = 16
"""Copies whose columns are compared, the last ones."""
_JITTER: Final = 32
_JITTERED: Final = 192
"""A loop in which more than one of :data:`_JITTER` tokens does not match has so many; half as many at a limit."""
_FIELD: Final = 3
"""Columns that a changing field has at most."""
_AT_END: Final = 4
"""An end of sequence, or a last token that was sampled differently, may follow a repetition that goes on."""
_REFRAIN: Final = 2
"""A stretch with fewer than this times the least span that ends before the output is a refrain."""
_PROBED: Final = np.arange(7, 32, 8)
"""Tokens of a chunk that are looked up among those before."""
_LONGEST_WAIT: Final = 256
_HALF: Final = np.uint64(32)
_LOWER: Final = np.uint64(0xFFFFFFFF)
_UNKNOWN: Final = np.uint32(0xFFFFFFFF)
_FACTORS: Final = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F], np.uint32)


class Repetition(NamedTuple):
    """A part of an output that repeats.

    Attributes:
        period: its length, in tokens.
        onset: output index where its first copy begins.
        end: one beyond the last index that belongs to it.
        fired_at: tokens seen when it was long enough to be found.
        copies: times the period was seen.
        field: columns that change from copy to copy, 0: none; -1: not one field only.
        loop: whether it is a fault by its tokens alone; else it is a template.
    """

    period: int
    onset: int
    end: int
    fired_at: int
    copies: int
    field: int
    loop: bool


def repeated_at(tokens: Array) -> Array:
    """For each token ``[n]`` int32, how far back the four tokens that end there last occurred; 0: not within the lags.

    Args:
        tokens: ``[n]`` int ids, negative where unknown: these match nothing.
    """
    lags = np.zeros(len(tokens), np.int32)
    if len(tokens) <= _GRAM:
        return lags
    grams = _grams(tokens)
    keys = grams.astype(np.uint64) << _HALF  # sorting values is several times faster than argsort
    keys |= np.arange(len(grams), dtype=np.uint64)
    keys.sort()
    gaps = np.diff(keys)  # at most the lags only where the upper halves are equal
    known = np.flatnonzero(gaps <= LAGS)
    lags[(keys[known + 1] & _LOWER).astype(np.int64) + _GRAM - 1] = gaps[known]
    return lags


def _grams(tokens: Array) -> Array:
    """A hash of each four successive tokens of ``[..., n]``, ``[..., n - 3]`` uint32; unknown ones all differ."""
    ids = tokens.astype(np.uint32, order="C")
    unknown = tokens < 0
    if unknown.any():
        ids[unknown] = _UNKNOWN - np.arange(np.count_nonzero(unknown), dtype=np.uint32)
    shape = (*ids.shape[:-1], ids.shape[-1] - _GRAM + 1, _GRAM)
    windows: Array = np.ndarray(shape, np.uint32, ids, strides=(*ids.strides, 4))  # sliding_window_view, in a tenth
    grams: Array = windows @ _FACTORS
    return grams


def share(lags: Array) -> float | None:
    """The largest share of repeated tokens among :data:`SHARE_SPAN` successive ones, of all where there are fewer.

    Args:
        lags: ``[n]``, of :func:`repeated_at`.
    """
    if not lags.any():
        return 0.0 if len(lags) else None
    total = np.concatenate(([0], (lags > 0).cumsum()))
    span = min(SHARE_SPAN, len(lags))
    return float((total[span:] - total[:-span]).max() / span)


def find(
    tokens: Array, least_span: int = LEAST_SPAN, *, cut_off: bool = False, lags: Array | None = None, live: bool = False
) -> Repetition | None:
    """The first loop of an output, else its longest template; None where it has neither.

    Args:
        tokens: ``[n]`` int32 ids, negative where unknown.
        least_span: matching tokens that either has at least.
        cut_off: a limit ended the output: what still repeats there would have gone on.
        lags: of :func:`repeated_at`, where they are known.
        live: the output goes on: of each period only the last stretch counts, which alone can be a loop now.
    """
    lags = repeated_at(tokens) if lags is None else lags
    if len(tokens) <= least_span or np.count_nonzero(lags) < _LEAST_REPEATED:
        return None
    periods = set(_likely(lags))
    if len(lags) > HISTORY:
        periods |= set(_likely(lags[-HISTORY:]))
    found = [
        repetition for period in sorted(periods) for repetition in _stretches(tokens, period, least_span, cut_off, live)
    ]
    loops = [repetition for repetition in found if repetition.loop]
    if loops:
        return min(loops, key=lambda one: one.fired_at)
    return max(found, key=lambda one: one.end - one.onset, default=None)


def _likely(lags: Array) -> list[int]:
    counts = np.bincount(lags)
    counts[0] = 0
    likely = np.argsort(-counts, kind="stable")[:_CANDIDATES]
    found: list[int] = likely[counts[likely] >= _LEAST_REPEATED].tolist()
    return found


def _stretches(tokens: Array, period: int, least_span: int, cut_off: bool, live: bool = False) -> Iterator[Repetition]:
    """The stretches that repeat with a period."""
    need = max(least_span, (COPIES - 1) * period)
    matches = (tokens[period:] == tokens[:-period]) & (tokens[period:] >= 0)
    if len(matches) < need:
        return
    missed = np.concatenate(([0], (~matches).cumsum()))
    window = max(period, _WINDOW)
    near = (missed[window:] - missed[:-window]) * 3 <= window
    edges = np.flatnonzero(np.diff(np.concatenate(([False], near, [False])).astype(np.int8)))
    if live:
        edges = edges[-2:]
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        first, last = start, stop - 1 + window  # of the comparisons
        if last - first < need:
            continue
        inside = np.flatnonzero(matches[first:last])
        first, last = first + int(inside[0]), first + int(inside[-1]) + 1
        if last - first >= need and (found := _judge(tokens, matches[first:last], period, first, need, cut_off)):
            yield found


def _judge(tokens: Array, matches: Array, period: int, first: int, need: int, cut_off: bool) -> Repetition | None:
    """The repetition whose ``matches`` begin where token ``first + period`` is compared with token ``first``."""
    end, onset = first + period + len(matches), first
    copies = (end - first) // period
    field = _field(tokens[end - min(copies, _LATEST) * period : end].reshape(-1, period))
    fired_at = first + need + period
    if not field:
        walk = np.where(matches, 1, -_LEAK).cumsum()
        walk -= np.minimum(np.minimum.accumulate(walk), 0)
        over = np.flatnonzero(walk >= need)
        if not len(over):
            return None
        fire = int(over[0])
        fired_at = first + fire + 1 + period
        began = int(np.flatnonzero(walk[:fire] == 0)[-1]) + 1 if not walk[:fire].all() else 0
        ended = fire + int((walk[fire:] == 0).argmax()) if not walk[fire:].all() else len(matches)
        matches = matches[began:ended]
        onset, end = first + began, first + began + int(np.flatnonzero(matches)[-1]) + 1 + period
    goes_on = end >= len(tokens) - _AT_END
    at_limit = cut_off and goes_on
    if field:
        enough = NUMBERED_AT_LIMIT if at_limit else NUMBERED_COPIES
        loop = 0 < field <= _FIELD and copies >= enough
        fired_at = max(fired_at, first + enough * period if loop else 0)
    else:
        misses = int(np.count_nonzero(~matches))
        jittered = misses * 8 <= len(matches) and len(matches) >= _JITTERED // (2 if at_limit else 1)
        loop = misses * _JITTER <= len(matches) or jittered
    loop = loop and (goes_on or len(matches) >= _REFRAIN * need)
    return Repetition(period, onset, end, fired_at, copies, field, loop)


def _field(rows: Array) -> int:
    """Columns of ``[copies, period]`` that change from row to row, if they are one field; 0: none does; -1: others do.

    A field changes from nearly every row to the next, and nothing else does. Beside it there are three columns at least
    with tokens that it never has.
    """
    copies, period = rows.shape
    alike = (rows[:, None] == rows[None]).sum(axis=1).max(axis=0)  # rows that have the column's commonest token
    columns = np.flatnonzero(copies - alike >= max(2, copies / 4))
    if not len(columns):
        return 0
    changes = np.count_nonzero(rows[1:] != rows[:-1], axis=0)
    others = changes.sum() - changes[columns].sum()
    if others > changes[columns].sum():
        return 0  # jitter that met a column twice
    gaps = np.count_nonzero(np.diff(columns, append=columns[0] + period) > 1)
    one = gaps <= 1 and changes[columns].max() * 4 >= 3 * (copies - 1) and others * _JITTER <= rows.size
    said = np.count_nonzero(~np.isin(np.delete(rows[-1], columns), rows[:, columns]))  # counting says nothing else
    return len(columns) if one and said >= _FIELD else -1


STATE: Final = np.dtype(
    [
        ("recent", "<i4", (HISTORY,)),  # the last tokens, token i at i % HISTORY
        ("grams", "<u4", (LAGS,)),  # likewise, of the four tokens that end there; 0: none
        ("looping", "?"),  # at the last check
        ("period", "<i4"),  # of the loop it is in
        ("checked", "<i8"),  # tokens seen at that check
        ("wait", "<i4"),  # tokens until the next
    ]
)
"""What is kept of a sequence that runs: 8 KiB."""


def initial(n: int) -> Array:
    """``n`` states that have seen nothing."""
    state = np.zeros(n, STATE)
    state["recent"] = -1
    return state


def advance(state: Array, slots: Array, first: Array, tokens: Array, least_span: int = LEAST_SPAN) -> None:
    """Take a chunk into the states of running sequences, in place.

    A sequence is checked only where two of four of the chunk's tokens are repeated, and ever more rarely while nothing
    is found. One in a loop is in it as long as three quarters of a chunk match.

    Args:
        state: ``[N]`` of :data:`STATE`.
        slots: ``[S]`` int, which of them.
        first: ``[S]`` int, how many tokens each has seen before, a multiple of ``T``.
        tokens: ``[S, T]`` int32 ids, negative where unknown; ``T`` is 32.
        least_span: matching tokens that a loop has at least.
    """
    length = tokens.shape[1]
    recent, kept = state["recent"], state["grams"]
    before = recent[slots[:, None], (first[:, None] + np.arange(1 - _GRAM, 0)) % HISTORY]
    recent[slots[:, None], first[:, None] % HISTORY + np.arange(length)] = tokens
    grams = _grams(np.concatenate((before, tokens), axis=1))
    probes = grams[:, _PROBED]
    same = kept[slots][:, None] == probes[:, :, None]
    hits = same.view(np.uint64).any(axis=2)  # eight at a time
    hits |= ((grams[:, None] == probes[:, :, None]) & (np.arange(length) < _PROBED[:, None])).any(axis=2)
    kept[slots[:, None], first[:, None] % LAGS + np.arange(length)] = grams
    seen = first + length
    repeated, wait = hits.sum(axis=1), state["wait"][slots]
    wait = np.where(repeated == len(_PROBED), np.minimum(wait, _LONGEST_WAIT // 2), wait)
    due = (repeated * 2 >= len(_PROBED)) & (seen >= state["checked"][slots] + wait)
    for i in np.flatnonzero(due | state["looping"][slots]).tolist():
        _check(state[slots[i]], int(seen[i]), tokens[i], least_span)


def _check(state: Any, seen: int, tokens: Array, least_span: int) -> None:
    """Whether a sequence whose last tokens these are is in a loop, into its state."""
    past = last_tokens(state, seen)
    if state["looping"]:
        pairs = past[-len(tokens) - state["period"] : -state["period"]]
        if np.count_nonzero(pairs == tokens[-len(pairs) :]) * 4 >= 3 * len(tokens):
            return
    found = find(past, least_span, live=True)
    state["looping"] = found is not None and found.loop and found.end >= len(past) - len(tokens) // 2
    state["period"] = found.period if found is not None else 0
    state["wait"] = min(max(2 * state["wait"], len(tokens)), _LONGEST_WAIT) if not state["looping"] else 0
    state["checked"] = seen


def last_tokens(state: Any, seen: int) -> Array:
    """The last tokens of a sequence that has seen so many, ``[n]`` int32 with ``n`` up to :data:`HISTORY`."""
    if seen <= HISTORY:
        return np.asarray(state["recent"][:seen])
    return np.roll(state["recent"], -(seen % HISTORY))


class LoopDetector:
    """The repetition in a sequence's tokens, as they come.

    Args:
        least_span: as in :func:`find`.
    """

    def __init__(self, least_span: int = LEAST_SPAN) -> None:
        self._tokens = np.empty(0, np.int32)
        self._least_span = least_span

    def update(self, tokens: Array | Iterable[int]) -> None:
        """Take the next tokens."""
        new = tokens if isinstance(tokens, np.ndarray) else np.fromiter(tokens, np.int32)
        self._tokens = np.concatenate((self._tokens, new.astype(np.int32)))

    @property
    def found(self) -> Repetition | None:
        """The first loop, else the longest template."""
        return find(self._tokens, self._least_span)

    @property
    def looping(self) -> bool:
        """In a loop now."""
        found = find(self._tokens[-HISTORY:], self._least_span)
        return found is not None and found.loop and found.end >= min(len(self._tokens), HISTORY) - 2 * _AT_END

    @property
    def period(self) -> int | None:
        """Period of the first loop, in tokens."""
        return found.period if (found := self.found) and found.loop else None

    @property
    def onset(self) -> int | None:
        """Output index where the repeating part of the first loop begins."""
        return found.onset if (found := self.found) and found.loop else None

    @property
    def fired_at(self) -> int | None:
        """Tokens seen when the first loop could be found."""
        return found.fired_at if (found := self.found) and found.loop else None
