"""Streaming features of a sequence: the sums of its tokens' statistics, in constant memory.

The state of many sequences is one structured array of :data:`STATE`, one entry a sequence, and :func:`fold` takes a
chunk of tokens of many sequences at once: the cost a token is that of a few vectorised operations. Folding a series
in any split gives the same features as folding it whole, up to rounding.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from corevital_otel.measure.token_values import COLUMNS, CONFIDENCE, ENTROPY, MARGIN, SURPRISAL, TOPK_MASS, Chunk
from corevital_otel.report import Features, Series

Array = npt.NDArray[Any]

GROUP: Final = 16
"""Tokens in a group of the group confidence. DeepConf slides over 1024 or 2048 tokens of a long chain of thought; most
served outputs are shorter than that. Sixteen tokens are about a clause: long enough that one rare word does not make
the minimum, short enough to see one bad stretch in an answer of a few lines. A shorter output is one group."""
_GROUP_KNOWN: Final = 12
"""Tokens of those that are known at least. A forced token's entropy counts as the mask left it, 0: the mean over the
few free tokens of a JSON object would be that of single tokens. It has no confidence that could count."""

HIGH_ENTROPY_BITS: Final = 4.0
"""Default threshold of ``high_entropy_steps``: the uncertainty of sixteen equally likely tokens."""

BURST_BITS: Final = 2.0
"""A token this much less sure than the one before is a burst."""

SALAD_BITS: Final = 1.0
"""A mean over :data:`SUSTAINED` tokens this far above the threshold of high entropy is word salad."""
SUSTAINED: Final = 64
_SUSTAINED_KNOWN: Final = 48
"""Tokens of those whose entropy is known at least."""

CLOSE_MARGIN: Final = 0.1
"""A token whose two likeliest candidates are closer than this was a close choice. bfloat16 logits tie, so the lowest
margin is 0 in nearly every long output; the share of close choices has no such bound."""

_HIGH_LEAK: Final = 2.0
"""Each other token subtracts this from the run of high-entropy tokens: it grows where more than two in three are."""
_SAME_BITS: Final = 0.01
"""Entropies this close, with the same likeliest token, count as the same distribution."""
_ENDS: Final = 1e9
"""What ends a run at once."""

_MAX_EXPONENT: Final = 1023.0  # 2.0 ** 1024 overflows

_COUNTS: Final = COLUMNS
_TOKENS: Final = 2 * COLUMNS
_ESTIMATED: Final = _TOKENS + 1
_HIGH: Final = _TOKENS + 2
_BURSTS: Final = _TOKENS + 3
_SAME: Final = _TOKENS + 4
_CLOSE: Final = _TOKENS + 5
_SQUARES: Final = _TOKENS + 6
_X: Final = _TOKENS + 8
_XX: Final = _TOKENS + 9
_XY: Final = _TOKENS + 10
_SUMS: Final = _TOKENS + 11
"""What is added up: the finite values of each column, and how many they are; tokens: observed, with an estimated
surprisal, of high entropy, bursts, with the distribution of the one before, of a low margin; the squares of entropy and
surprisal above their first values, and of the tokens whose entropy is known the output index, its square, and its
product with that entropy. Counts are kept as floats, which are exact far beyond any output, so that one reduction and
one addition do."""

PEAKS: Final = ("entropy_max", "surprisal_max", "margin_min", "confidence_min", "entropy_group_max", "entropy_rebound")
"""What is kept as a running maximum; of margin and confidence, of their negative."""
_CONFIDENCE_LOW: Final = 3
_GROUP_HIGH: Final = 4
_REBOUND: Final = 5

STATE: Final = np.dtype(
    [
        ("sums", "<f8", (_SUMS,)),
        ("early", "<f8", (_TOKENS,)),  # the first of the sums, over the first GROUP tokens
        ("peaks", "<f8", (len(PEAKS),)),
        ("forced", "<i8"),  # tokens
        ("nan", "?"),
        ("inf", "?"),
        ("first", "<f8", (2,)),  # the first known entropy and surprisal
        # of the last tokens: entropy, 0 where there is none, and 1 where there is one or the token was forced;
        # -confidence, and 1 where there is one; 1 where there is an entropy
        ("group", "<f8", (5, GROUP)),
        ("group_floor", "<f8"),  # lowest mean entropy of a group
        ("top", "<i8"),  # the last token's likeliest
        ("runs", "<f8", (2,)),  # of tokens of high entropy, of tokens with the distribution of the one before
        ("longest", "<f8", (2,)),
        ("sustained", "<f4", (2, SUSTAINED)),  # the last entropies, 0 where there is none, and 1 where
        ("sustained_high", "<f8"),  # highest mean of so many
        ("alarmed_at", "<i8"),  # output index at which the watched maximum crossed its threshold, negative: not yet
    ]
)
"""What is kept of a sequence: 1.5 KiB."""


class Watch(NamedTuple):
    """A running maximum that is watched: its place in :data:`PEAKS`, and beyond what it alarms."""

    peak: int
    threshold: float


def initial(n: int) -> Array:
    """``n`` states that have seen nothing."""
    state = np.zeros(n, STATE)
    state["peaks"] = -np.inf
    state["group_floor"] = np.inf
    state["sustained_high"] = -np.inf
    state["top"] = state["alarmed_at"] = -1
    return state


def fold(
    state: Array,
    first: Array,
    chunk: Chunk,
    high_entropy_bits: float = HIGH_ENTROPY_BITS,
    lengths: Array | None = None,
    watch: Watch | None = None,
) -> None:
    """Take a chunk into the states, in place.

    The number of NumPy calls is what a chunk of few sequences costs, hence the packing of sums, means and moments.

    Args:
        state: ``[S]`` of :data:`STATE`.
        first: ``[S]`` int, output index of each sequence's first token in the chunk.
        chunk: the tokens that follow those folded before, without a gap: what is missing is in it as not observed.
        high_entropy_bits: threshold of ``high_entropy_steps``.
        lengths: ``[S]`` int, tokens of the chunk that a sequence has; those behind are not observed. None: all. To be
            given only with each sequence's last chunk.
        watch: what to watch.
    """
    values, tokens = chunk.values, chunk.values.shape[2]
    if not tokens:
        return
    finite = np.isfinite(values)
    parts = np.zeros((_SUMS, *chunk.observed.shape))
    np.copyto(parts[:COLUMNS], values, where=finite)
    parts[_COUNTS:_TOKENS] = finite
    parts[_TOKENS] = chunk.observed
    parts[_ESTIMATED] = chunk.estimated
    parts[_HIGH] = values[ENTROPY] > high_entropy_bits
    parts[_CLOSE] = values[MARGIN] < CLOSE_MARGIN
    recent = _recent(state, parts, chunk.forced)
    _compare(state, parts, recent, chunk.top)
    _square(state, first, parts)
    sums = np.add.reduce(parts, axis=2)  # [_SUMS, S]
    _run_on(state, parts, sums)
    if first.min() < GROUP:
        _add_early(state, first, parts)
    groups = _slide_groups(state, first, recent, lengths)
    _sustain(state, first, parts, lengths)
    # Not `state["sums"] += ...`: that would also copy the field onto itself.
    np.add(state["sums"], sums.T, out=state["sums"])
    peaks = np.empty((len(PEAKS), len(state)))
    np.fmax.reduce(values[:MARGIN], axis=2, out=peaks[:MARGIN])
    np.negative(np.fmin.reduce(values[MARGIN], axis=1), out=peaks[MARGIN])
    np.maximum.reduce(groups, axis=2, out=peaks[_CONFIDENCE_LOW:])
    np.fmax(state["peaks"], peaks.T, out=state["peaks"])
    np.logical_or(state["nan"], chunk.nan, out=state["nan"])
    np.logical_or(state["inf"], chunk.inf, out=state["inf"])
    if chunk.forced is not None:
        state["forced"] += chunk.forced.sum(axis=1)
    if watch is not None:
        _alarm(state, first, values, groups, watch)


def _recent(state: Array, parts: Array, forced: Array | None) -> Array:
    """The chunk behind the :data:`GROUP` tokens before it, ``[5, S, GROUP + T]``, as in ``state["group"]``."""
    recent = np.empty((5, len(state), GROUP + parts.shape[2]))
    recent[:, :, :GROUP] = state["group"].swapaxes(0, 1)
    recent[0, :, GROUP:] = parts[ENTROPY]
    np.negative(parts[CONFIDENCE], out=recent[2, :, GROUP:])
    recent[1::2, :, GROUP:] = parts[_COUNTS + ENTROPY : _TOKENS : CONFIDENCE]
    recent[4, :, GROUP:] = parts[_COUNTS + ENTROPY]
    if forced is not None:
        recent[1, :, GROUP:] += forced
    return recent


def _compare(state: Array, parts: Array, recent: Array, top: Array) -> None:
    """Compare each token with the one before it, into ``parts``: bursts, and equal distributions."""
    rise = recent[0, :, GROUP:] - recent[0, :, GROUP - 1 : -1]
    both = recent[4, :, GROUP:] * recent[4, :, GROUP - 1 : -1]
    np.multiply(rise >= BURST_BITS, both, out=parts[_BURSTS])
    alike = np.empty(top.shape, bool)
    np.equal(top[:, 1:], top[:, :-1], out=alike[:, 1:])
    np.equal(top[:, 0], state["top"], out=alike[:, 0])
    alike &= np.abs(rise, out=rise) <= _SAME_BITS
    np.multiply(alike, both, out=parts[_SAME])
    state["top"] = top[:, -1]


def _run_on(state: Array, parts: Array, sums: Array) -> None:
    """Follow the runs of tokens of high entropy, and of those with the distribution of the one before.

    A run is a reflected random walk: it rises by one, falls by its leak, and never below zero. One that ends at once
    has a leak beyond any length. Most sequences have neither, and cost nothing here.
    """
    some = np.flatnonzero(sums[_HIGH] + sums[_SAME] + state["runs"].sum(axis=1))
    if not len(some):
        return
    steps = np.empty((2, len(some), parts.shape[2]))
    np.subtract(parts[_HIGH, some] * (1.0 + _HIGH_LEAK), parts[_COUNTS + ENTROPY, some] * _HIGH_LEAK, out=steps[0])
    np.subtract(parts[_SAME, some] * (1.0 + _ENDS), parts[_TOKENS, some] * _ENDS, out=steps[1])
    walk = steps.cumsum(axis=2)
    walk -= np.minimum(np.minimum.accumulate(walk, axis=2), -state["runs"][some].T[:, :, None])
    state["longest"][some] = np.maximum(state["longest"][some], walk.max(axis=2).T)
    state["runs"][some] = walk[:, :, -1].T


def _square(state: Array, first: Array, parts: Array) -> None:
    """Squares and products into ``parts``, for spread and slope.

    Of values above the sequence's first one: that is never further from their mean than the square root of their number
    times their spread, so what is subtracted in the end does not cancel (Chan, Golub, LeVeque 1983, on shifted data).
    """
    finite = parts[_COUNTS : _COUNTS + MARGIN]  # of entropy and surprisal
    none = state["sums"][:, _COUNTS : _COUNTS + MARGIN].T == 0
    if none.any():
        at = finite.argmax(axis=2)
        found = np.take_along_axis(parts[:MARGIN], at[:, :, None], axis=2)[:, :, 0]
        state["first"] = np.where(none, found, state["first"].T).T
    above = (parts[:MARGIN] - state["first"].T[:, :, None]) * finite
    np.multiply(above, above, out=parts[_SQUARES:_X])
    index = first[:, None] + np.arange(parts.shape[2])
    np.multiply(index, finite[ENTROPY], out=parts[_X])
    np.multiply(index, parts[_X], out=parts[_XX])
    np.multiply(index, above[ENTROPY], out=parts[_XY])


def _add_early(state: Array, first: Array, parts: Array) -> None:
    """Add up the first :data:`GROUP` tokens, of sequences that have them in this chunk."""
    young = np.flatnonzero(first < GROUP)
    if len(young):
        some = parts[:_TOKENS, young, :GROUP]
        early = first[young, None] + np.arange(some.shape[2]) < GROUP
        state["early"][young] += np.einsum("kst,st->sk", some, early)


def _slide_groups(state: Array, first: Array, recent: Array, lengths: Array | None) -> Array:
    """Means over groups of :data:`GROUP` successive tokens (arXiv:2508.15260, eq. 4 and 6).

    Returns:
        ``[3, S, T]``, of the group that ends at each token: minus its mean confidence, its mean entropy, and how far
        that is above the lowest one so far. -inf where there is no whole group, or too little of it is known.
    """
    tokens = recent.shape[2] - GROUP
    if lengths is None:
        state["group"] = recent[:, :, tokens:].swapaxes(0, 1)
    else:
        last = lengths[:, None] + np.arange(GROUP)
        state["group"] = recent[:, np.arange(len(state))[:, None], last].swapaxes(0, 1)
    sums = recent[:4, :, 1:]
    span = 1
    while span < GROUP:  # sums over 2, 4, 8, 16 tokens
        sums = sums[:, :, span:] + sums[:, :, :-span]
        span *= 2
    totals, counts = sums[::2], sums[1::2]  # [2, S, T], of the groups that end at each token
    whole = counts >= _GROUP_KNOWN
    if first.min() < GROUP - 1:
        whole &= first[:, None] + np.arange(tokens) >= GROUP - 1
    if lengths is not None:
        whole &= np.arange(tokens) < lengths[:, None]
    means = np.full((3, len(state), tokens), -np.inf)
    np.divide(totals[1], counts[1], out=means[0], where=whole[1])
    np.divide(totals[0], counts[0], out=means[1], where=whole[0])
    floor = np.minimum.accumulate(np.where(whole[0], means[1], np.inf), axis=1)
    np.minimum(floor, state["group_floor"][:, None], out=floor)
    np.subtract(means[1], floor, out=means[2], where=whole[0])
    state["group_floor"] = floor[:, -1]
    return means


def _sustain(state: Array, first: Array, parts: Array, lengths: Array | None) -> None:
    """Follow the mean entropy of :data:`SUSTAINED` successive tokens."""
    sequences, tokens = parts.shape[1:]
    recent = np.empty((2, sequences, SUSTAINED + tokens))
    recent[:, :, :SUSTAINED] = state["sustained"].swapaxes(0, 1)
    recent[:, :, SUSTAINED:] = parts[[ENTROPY, _COUNTS + ENTROPY]]
    if lengths is None:
        state["sustained"] = recent[:, :, tokens:].swapaxes(0, 1)
    sums = recent.cumsum(axis=2)
    sums = sums[:, :, SUSTAINED:] - sums[:, :, :-SUSTAINED]  # of the tokens that end at each
    whole = sums[1] >= _SUSTAINED_KNOWN
    if first.min() < SUSTAINED:
        whole &= first[:, None] + np.arange(tokens) >= SUSTAINED - 1
    if lengths is not None:
        whole &= np.arange(tokens) < lengths[:, None]
    means = np.full((sequences, tokens), -np.inf)
    np.divide(sums[0], sums[1], out=means, where=whole)
    np.maximum(state["sustained_high"], means.max(axis=1), out=state["sustained_high"])


def _alarm(state: Array, first: Array, values: Array, groups: Array, watch: Watch) -> None:
    """Note where the watched maximum crossed its threshold in this chunk."""
    over = np.flatnonzero((state["alarmed_at"] < 0) & (state["peaks"][:, watch.peak] > watch.threshold))
    if len(over):
        if watch.peak >= _CONFIDENCE_LOW:
            found = groups[watch.peak - _CONFIDENCE_LOW, over]
        else:
            found = values[watch.peak, over] * (-1.0 if watch.peak == MARGIN else 1.0)
        state["alarmed_at"][over] = first[over] + (found > watch.threshold).argmax(axis=1)


def summaries(state: Array) -> list[Features]:
    """Features of each of the states ``[S]``."""
    names = ("sums", "early", "peaks", "first", "longest", "sustained_high", "forced")
    columns = (*(state[name].tolist() for name in names), state["group"].sum(axis=2).tolist())
    return [_summary(*values) for values in zip(*columns, strict=True)]


def _summary(
    sums: list[float],
    early: list[float],
    peaks: list[float],
    first: list[float],
    longest: list[float],
    sustained: float,
    forced: int,
    group: list[float],
) -> Features:
    entropies, surprisals, margins, masses, confidences = sums[_COUNTS:_TOKENS]
    entropy = sums[ENTROPY] / entropies if entropies else None
    surprisal = sums[SURPRISAL] / surprisals if surprisals else None
    confidence = sums[CONFIDENCE] / confidences if confidences else None
    begun = [early[i] / early[_COUNTS + i] if early[_COUNTS + i] else None for i in range(COLUMNS)]
    entropy_tail = group[0] / group[4] if group[4] else None
    confidence_tail = -group[2] / group[3] if group[3] else None
    least = _peak(peaks[_CONFIDENCE_LOW], -sums[CONFIDENCE], confidences, forced)
    return Features(
        tokens=int(sums[_TOKENS]),
        entropy_mean=entropy,
        entropy_max=peaks[ENTROPY] if entropies else None,
        entropy_std=_std(sums, ENTROPY, first[ENTROPY]) if entropies else None,
        entropy_slope=_slope(sums, first[ENTROPY]),
        entropy_sum=sums[ENTROPY] if entropies else None,
        entropy_early=begun[ENTROPY],
        entropy_change=_difference(entropy_tail, begun[ENTROPY]),
        entropy_group_max=_peak(peaks[_GROUP_HIGH], sums[ENTROPY], entropies and entropies + forced),
        entropy_rebound=peaks[_REBOUND] if math.isfinite(peaks[_REBOUND]) else None,
        entropy_bursts=int(sums[_BURSTS]),
        surprisal_mean=surprisal,
        surprisal_max=peaks[SURPRISAL] if surprisals else None,
        surprisal_std=_std(sums, SURPRISAL, first[SURPRISAL]) if surprisals else None,
        surprisal_sum=sums[SURPRISAL] if surprisals else None,
        surprisal_early=begun[SURPRISAL],
        perplexity=None if surprisal is None else 2.0 ** min(surprisal, _MAX_EXPONENT),
        margin_mean=sums[MARGIN] / margins if margins else None,
        margin_min=-peaks[MARGIN] if margins else None,
        margin_early=begun[MARGIN],
        margin_close_share=sums[_CLOSE] / margins if margins else None,
        topk_mass_mean=sums[TOPK_MASS] / masses if masses else None,
        confidence_mean=confidence,
        confidence_min=None if least is None else -least,
        confidence_early=begun[CONFIDENCE],
        confidence_tail=confidence_tail,
        confidence_change=_difference(confidence_tail, begun[CONFIDENCE]),
        high_entropy_steps=int(sums[_HIGH]),
        high_entropy_run=int(longest[0]),
        high_entropy_mean=sustained if math.isfinite(sustained) else None,
        frozen_run=int(longest[1]),
        surprisal_estimated=int(sums[_ESTIMATED]),
        forced=forced,
    )


def _std(sums: list[float], column: int, first: float) -> float:
    count = sums[_COUNTS + column]
    above = sums[column] / count - first
    return math.sqrt(max(sums[_SQUARES + column] / count - above * above, 0.0))


def _slope(sums: list[float], first: float) -> float | None:
    count = sums[_COUNTS + ENTROPY]
    spread = sums[_XX] - sums[_X] * sums[_X] / count if count > 1 else 0.0
    return (sums[_XY] - sums[_X] * (sums[ENTROPY] / count - first)) / spread if spread > 0.0 else None


def _peak(peak: float, total: float, known: float, forced: int = 0) -> float | None:
    """A running maximum of group means; that of an output shorter than a group is its mean.

    Args:
        peak: the maximum, -inf where there was no group.
        total: sum over the whole output.
        known: its tokens that this is of.
        forced: those left out of it; with more than one in four there is no mean.
    """
    if not known:
        return None
    if math.isfinite(peak):
        return peak
    short = known + forced < GROUP and 3 * forced <= known
    return total / known if short else None


def final_peak(found: Features, peak: int) -> float:
    """The watched maximum at an output's end: of one that is shorter than a group, it is known there alone.

    -inf for a maximum that is not of groups, or is not known.
    """
    if peak < _CONFIDENCE_LOW:
        return -math.inf
    value = found.entropy_group_max if peak == _GROUP_HIGH else found.confidence_min
    return -math.inf if value is None else value if peak == _GROUP_HIGH else -value


def _difference(late: float | None, early: float | None) -> float | None:
    return None if late is None or early is None else late - early


def of_series(series: Series, high_entropy_bits: float = HIGH_ENTROPY_BITS) -> Features:
    """The features of a stored series, or of the beginning of one: the same as live, to float32's precision.

    A series has neither confidences nor the ids of tokens: ``confidence_*`` are None, and ``frozen_run``,
    ``surprisal_estimated`` and ``forced`` are 0. A token whose entropy is not known counts as not observed,
    and a forced one as one that the model was certain of.
    """
    values = np.full((COLUMNS, 1, len(series)), np.nan)
    for at, column in enumerate((series.entropy, series.surprisal, series.margin, series.topk_mass)):
        values[at, 0] = column
    observed = np.isfinite(values[ENTROPY])
    no = np.zeros(1, bool)
    state = initial(1)
    unknown = np.arange(len(series))[None]  # no two the same
    chunk = Chunk(values, observed, np.zeros_like(observed), no, no, unknown)
    fold(state, np.zeros(1, np.int64), chunk, high_entropy_bits)
    return summaries(state)[0]


def group_means(values: Array) -> Array:
    """Mean over the group of :data:`GROUP` tokens that ends at each token, ``[T]``.

    NaN before there is a whole group, and where less than twelve of its tokens are known. An output with fewer known
    tokens than a group is one group, which ends at its last token.
    """
    known = np.isfinite(values)
    total = np.concatenate(([0.0], np.where(known, values, 0.0).cumsum(dtype=np.float64)))
    count = np.concatenate(([0], known.cumsum()))
    means = np.full(len(values), np.nan)
    sizes = count[GROUP:] - count[:-GROUP]
    np.divide(total[GROUP:] - total[:-GROUP], sizes, out=means[GROUP - 1 :], where=sizes >= _GROUP_KNOWN)
    if 0 < count[-1] < GROUP and not np.isfinite(means).any():
        means[-1] = total[-1] / count[-1]
    return means
