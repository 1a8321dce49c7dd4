"""Repetition loops: a leaky counter for every lag, over the sampled tokens.

For a lag L the counter rises by one where a token equals the one L before it, falls by four where it does not, and
never below zero. A loop of period L drives it up steadily, also with a few tokens jittered or one of a period
changing; text that merely reuses words does not. A lag fires where its counter

- stands for the period seen three times over (2 L matches) and for at least 48 tokens: without that minimum, short
  periods fire on most human text;
- and at least seven of eight tokens matched since it last was zero: without that, counting upwards in single digits
  fires ("1041, 1042, " differs in one token of six).

Written as a reflected random walk, the counters of many sequences and of all lags advance eight tokens at a time by
table: the matches of eight tokens are one byte, and a byte's net step and its rise above its lowest point are all
that the walk needs (c' = max(c + net, rise)). They are read at every eighth token.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LAGS: Final = 128
"""Longest period watched, in tokens."""
STRIDE: Final = 8
"""Tokens between two readings of the counters; chunks begin and end at multiples of it."""
COPIES: Final = 3
"""Times the period must have been seen; the first copy matches nothing."""
LEAST_SPAN: Final = 48
LEAK: Final = 4

_PERIODS: Final = np.arange(LAGS, 0, -1)  # in the order of a window that slides over the last tokens, oldest first
_HELD_ABOVE: Final = 32
"""A counter is held under its need and this between chunks, so that a sequence soon counts as out of its loop again."""

# Over n tokens with m misses the counter rises by n - 5 m, so m <= n / 8 is a rise of at least 3/8 of n.
_RISE_NUMERATOR: Final = 8 - (LEAK + 1)
_RISE_DENOMINATOR: Final = 8

_STEPS: Final = np.where(np.arange(256)[:, None] >> np.arange(STRIDE) & 1, 1, -LEAK).cumsum(axis=1)
_NET: Final = _STEPS[:, -1].astype(np.int16)
_RISE: Final = (_STEPS[:, -1] - np.minimum(_STEPS.min(axis=1), 0)).astype(np.int16)

STATE: Final = np.dtype(
    [
        ("score", "<i2", (LAGS,)),
        ("zero_at", "<i4", (LAGS,)),  # tokens seen when the score last was zero, to STRIDE tokens
        ("recent", "<i4", (LAGS,)),  # the last tokens, oldest first; negative: unknown or none
        ("looping", "?"),  # at the last reading
        ("period", "<i4"),  # of the first loop found, 0: none so far
        ("onset", "<i4"),
        ("fired_at", "<i4"),  # tokens seen when it was found
    ]
)
"""What is kept of a sequence: 1.3 KiB."""


@lru_cache
def need(least_span: int = LEAST_SPAN) -> Array:
    """Where each lag's counter fires ``[LAGS]`` int16; entry ``j`` is lag ``LAGS - j``."""
    needed: Array = np.maximum(least_span, (COPIES - 1) * _PERIODS).astype(np.int16)
    return needed


def initial(n: int) -> Array:
    """``n`` states that have seen nothing."""
    state = np.zeros(n, STATE)
    state["recent"] = -1
    return state


def advance(state: Array, first: Array, tokens: Array, least_span: int = LEAST_SPAN) -> None:
    """Take tokens into the states, in place.

    Args:
        state: ``[S]`` of :data:`STATE`.
        first: ``[S]`` int, how many tokens each has seen before, a multiple of :data:`STRIDE`.
        tokens: ``[S, T]`` int32 ids, negative where unknown (matches nothing); ``T`` a multiple of :data:`STRIDE`.
        least_span: matching tokens that a loop has at least.
    """
    needed = need(least_span)
    sequences, length = tokens.shape
    known = tokens >= 0
    past = np.concatenate((state["recent"], np.where(known, tokens, -1).astype(np.int32)), axis=1)
    now = np.where(known, tokens, -2).astype(np.int32)
    # [S, LAGS, T]: past[s, j + t] is LAGS - j tokens before t. sliding_window_view, without its 10 us of checks.
    windows = np.ndarray((sequences, LAGS, length), np.int32, past, strides=(past.strides[0], 4, 4))
    matches = windows == now[:, None, :]
    codes = np.packbits(matches.reshape(-1), bitorder="little").reshape(sequences, LAGS, -1)
    net, rise = _NET[codes], _RISE[codes]  # [S, LAGS, T / STRIDE]
    score, zero_at = state["score"], state["zero_at"].copy()
    looping = np.zeros(sequences, bool)
    for i in range(length // STRIDE):
        seen = (first + STRIDE * (i + 1))[:, None]
        walked, bottom = score + net[:, :, i], rise[:, :, i]
        np.copyto(zero_at, seen, where=walked <= bottom, casting="same_kind")
        score = np.maximum(walked, bottom)
        fires = score >= needed
        if not fires.any():
            looping[:] = False
            continue
        fires &= score.astype(np.int32) * _RISE_DENOMINATOR >= (seen - zero_at) * _RISE_NUMERATOR
        looping = fires.any(axis=1)
        for s in np.flatnonzero(looping & (state["period"] == 0)):
            shortest = int(np.flatnonzero(fires[s])[-1])
            state["period"][s] = LAGS - shortest
            state["fired_at"][s] = seen[s, 0]
            state["onset"][s] = max(int(zero_at[s, shortest]) - (LAGS - shortest), 0)
    state["looping"] = looping
    ceiling = needed + _HELD_ABOVE
    over = score > ceiling
    if over.any():  # hold the counter down, and shorten its span alike, so that the share of matches stays
        span = (seen - zero_at) * ceiling.astype(np.int64) // np.maximum(score, 1)
        np.copyto(zero_at, seen - span, where=over, casting="same_kind")
    state["score"] = np.minimum(score, ceiling)
    state["zero_at"] = zero_at
    state["recent"] = past[:, length:]


def onset(tokens: Array, period: int, fired_at: int) -> int:
    """Output index where the first copy of a repeating part begins, given that its loop fired at ``fired_at``.

    The counter of the loop's lag last left zero one period after that.
    """
    seen = np.asarray(tokens)[:fired_at]
    walk = np.where(seen[period:] == seen[:-period], 1, -LEAK).cumsum()
    walk = np.concatenate(([0], walk))
    return len(walk) - 1 - int(walk[::-1].argmin())


def find(tokens: Array, state: Array, seen: int, least_span: int = LEAST_SPAN) -> tuple[int, int] | None:
    """Period and onset of the first loop in an output, if there is one.

    Args:
        tokens: ``[n]`` int32, all of the output.
        state: ``[1]`` of :data:`STATE`, of a detector that has seen the first ``seen`` of them; left as it is.
        seen: a multiple of :data:`STRIDE`.
        least_span: as in :func:`advance`.
    """
    rest = tokens[seen:]
    if not state["period"][0]:
        if not _may_fire(state, rest, least_span):
            return None
        detector = LoopDetector(state.copy(), seen, least_span)
        detector.update(rest)
        state = detector.state
    period, fired_at = int(state["period"][0]), int(state["fired_at"][0])
    return (period, onset(tokens, period, fired_at)) if period else None


def _may_fire(state: Array, tokens: Array, least_span: int) -> bool:
    """False only if no loop can be found within the next tokens: much cheaper than to look for one.

    A counter rises by one at most, and only at a token that has occurred among the :data:`LAGS` before.
    """
    lead = int(state["score"].max())
    if lead + len(tokens) < least_span:
        return False
    unseen = set(tokens.tolist()).difference(state["recent"][0].tolist())
    return lead + len(tokens) - len(unseen) >= least_span


class LoopDetector:
    """The detector for one sequence.

    Args:
        state: a one-entry array to go on from, owned by the detector from then on; None: from the start.
        seen: tokens that ``state`` has seen, a multiple of :data:`STRIDE`.
        least_span: as in :func:`advance`.

    Attributes:
        state: its state, ``[1]`` of :data:`STATE`.
        looping: in a loop at the last reading.
        period: of the first loop found, in tokens; None: none so far.
        onset: output index where its repeating part begins, to within :data:`STRIDE` tokens. :func:`onset` gives it
            from the tokens.
    """

    _BLOCK: Final = 512

    def __init__(self, state: Array | None = None, seen: int = 0, least_span: int = LEAST_SPAN) -> None:
        self.state = initial(1) if state is None else state
        self._seen = seen
        self._least_span = least_span
        self._rest = np.empty(0, np.int32)

    def update(self, tokens: Array | Iterable[int]) -> None:
        """Take the next tokens."""
        new = tokens if isinstance(tokens, np.ndarray) else np.fromiter(tokens, np.int32)
        buffered = np.concatenate((self._rest, new)).astype(np.int32)
        whole = len(buffered) - len(buffered) % STRIDE
        for at in range(0, whole, self._BLOCK):
            block = buffered[at : min(at + self._BLOCK, whole)]
            advance(self.state, np.array([self._seen]), block[None], self._least_span)
            self._seen += len(block)
        self._rest = buffered[whole:]

    @property
    def looping(self) -> bool:
        """In a loop at the last reading."""
        return bool(self.state["looping"][0])

    @property
    def period(self) -> int | None:
        """Period of the first loop found, in tokens."""
        return int(self.state["period"][0]) or None

    @property
    def onset(self) -> int | None:
        """Where the repeating part of the first loop begins, to within :data:`STRIDE` tokens."""
        return int(self.state["onset"][0]) if self.period else None

    @property
    def fired_at(self) -> int | None:
        """Tokens seen when the first loop was found."""
        return int(self.state["fired_at"][0]) if self.period else None
