"""Streaming features of a sequence: what its tokens' statistics add up to, in constant memory.

The state of many sequences is one structured array of :data:`STATE`, one entry a sequence, and :func:`fold` takes a
chunk of tokens of many sequences at once: the cost a token is that of a few vectorised operations. Folding a series
in any split gives the same features as folding it whole, up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital_otel.report import Features

Array = npt.NDArray[Any]

ENTROPY: Final = 0
SURPRISAL: Final = 1
MARGIN: Final = 2
TOPK_MASS: Final = 3
CONFIDENCE: Final = 4
COLUMNS: Final = 5
"""Per-token values, in this order: entropy (bits), surprisal (bits), margin, top-10 mass, confidence (nats)."""

GROUP: Final = 16
"""Tokens in a group of the group confidence. DeepConf slides over 1024 or 2048 tokens of a long chain of thought; most
served outputs are shorter than that. Sixteen tokens are about a clause: long enough that one rare word does not make
the minimum, short enough to see one bad stretch in an answer of a few lines. A shorter output is one group."""

HIGH_ENTROPY_BITS: Final = 4.0
"""Default threshold of ``high_entropy_steps``: the uncertainty of sixteen equally likely tokens."""

_BITS: Final = 1.0 / math.log(2.0)
_LEAST_MASS: Final = 1e-7
"""Float32 sums of twenty probabilities know the mass of the tail no better than this."""
_MAX_EXPONENT: Final = 1023.0  # 2.0 ** 1024 overflows

_COUNTS: Final = COLUMNS
_TOKENS: Final = 2 * COLUMNS
_ESTIMATED: Final = _TOKENS + 1
_HIGH: Final = _TOKENS + 2
_SUMS: Final = _TOKENS + 3
"""What is added up: the finite values of each column, how many they are, and tokens: observed, with an estimated
surprisal, of high entropy. Counts are kept as floats, which are exact far beyond any output, so that one reduction and
one addition do for all."""

STATE: Final = np.dtype(
    [
        ("sums", "<f8", (_SUMS,)),
        ("peaks", "<f8", (3,)),  # greatest entropy, surprisal and -margin
        ("nan", "?"),
        ("inf", "?"),
        ("means", "<f8", (2,)),  # of entropy (y) and of its output index (x)
        ("moments", "<f8", (3,)),  # sums of (y - mean y)^2, (x - mean x)^2 and (x - mean x)(y - mean y)
        ("group", "<f8", (2, GROUP - 1)),  # the last confidences, 0 where there is none; and 1 where there is one
        ("group_low", "<f8"),
    ]
)
"""What is kept of a sequence: about 420 bytes."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Values of ``T`` successive tokens of each of ``S`` sequences.

    Attributes:
        values: ``[COLUMNS, S, T]`` float64, NaN where a value is not known.
        observed: ``[S, T]`` bool, whether there was a row at all.
        estimated: ``[S, T]`` bool, whether the surprisal is an estimate.
        nan, inf: ``[S]`` bool, whether a row had a NaN or +Inf among its logits.
    """

    values: Array
    observed: Array
    estimated: Array
    nan: Array
    inf: Array


def initial(n: int) -> Array:
    """``n`` states that have seen nothing."""
    state = np.zeros(n, STATE)
    state["peaks"] = -np.inf
    state["group_low"] = np.inf
    return state


def measure(rows: Array, observed: Array, tokens: Array, logprobs: Array) -> Chunk:
    """Per-token values of rows and of the tokens sampled from them.

    Confidence is DeepConf's token confidence, minus the mean log-probability of the k likeliest tokens (Fu et al. 2025,
    arXiv:2508.15260, eq. 2), over those of the 20 that are not masked. A row whose entropy is NaN (a +Inf among its
    logits, or none finite) gives no values: it counts as observed and raises its flag, and is left out of every mean.

    Args:
        rows: ``[S, T]`` of :data:`corevital.frames.record.ROW`; anything where not ``observed``.
        observed: ``[S, T]`` bool.
        tokens: ``[S, T]`` int, ids of the sampled tokens, negative where unknown.
        logprobs: ``[S, T]`` float32, nats, of those tokens where known, else NaN.
    """
    values = np.empty((COLUMNS, *observed.shape))
    with np.errstate(invalid="ignore", over="ignore"):
        np.multiply(rows["entropy"], _BITS, out=values[ENTROPY])
        estimated = _surprisal(rows, observed, tokens, logprobs, out=values[SURPRISAL])
        values[MARGIN] = rows["margin"]
        values[TOPK_MASS] = rows["topk_mass"]
        _confidence(rows["topk_logprobs"], out=values[CONFIDENCE])
    usable = observed & np.isfinite(values[ENTROPY])
    finite = np.isfinite(values)
    finite &= usable
    if not finite.all():
        values[~finite] = np.nan
        estimated &= finite[SURPRISAL]
    nan: Array = np.any((rows["nan_count"] > 0) & observed, axis=1)
    inf: Array = np.any((rows["posinf_count"] > 0) & observed, axis=1)
    return Chunk(values, observed, estimated, nan, inf)


def _confidence(logprobs: Array, out: Array) -> None:
    """Minus the mean over the last axis of ``logprobs [S, T, 20]``, over finite entries."""
    total = logprobs.sum(axis=-1)
    np.multiply(total, -1.0 / logprobs.shape[-1], out=out)
    partial = ~np.isfinite(total)
    if partial.any():
        some = logprobs[partial]
        finite = np.isfinite(some)
        count = finite.sum(axis=-1)
        out[partial] = np.where(count > 0, -np.where(finite, some, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def _surprisal(rows: Array, observed: Array, tokens: Array, logprobs: Array, out: Array) -> Array:
    """Surprisals in bits into ``out [S, T]``; returns which of them are estimates.

    In this order: the log-probability sent with the token; the token's entry in the row's top-20 table, as exact; for a
    token outside the table, the mean of the tail, log((1 - sum of the table) / unmasked tokens outside it), and never
    above the table's lowest entry; for a row whose token is not known, the entropy, which is a token's expected
    surprisal.
    """
    np.multiply(logprobs, -_BITS, out=out)
    estimated = np.zeros(out.shape, bool)
    need = np.isnan(out) & observed
    if need.any():
        some, token = rows[need], tokens[need]
        table = some["topk_logprobs"]
        hit = (some["topk_ids"] == token[:, None]) & np.isfinite(table) & (token >= 0)[:, None]
        found = hit.any(axis=1)
        value = table[np.arange(len(table)), hit.argmax(axis=1)].astype(np.float64)
        if not found.all():
            value[~found] = _expected_logprob(some[~found], token[~found])
        out[need] = value * -_BITS
        estimated[need] = ~found
    np.maximum(out, 0.0, out=out)  # a sure token's log-probability may come out a rounding error above 0
    return estimated


def _expected_logprob(rows: Array, tokens: Array) -> Array:
    """Estimates ``[n]``, nats, for tokens outside their rows' tables ``[n]``."""
    table = rows["topk_logprobs"].astype(np.float64)
    finite = np.isfinite(table)
    mass = np.clip(1.0 - np.exp(np.where(finite, table, -np.inf)).sum(axis=1), _LEAST_MASS, 1.0)
    outside = rows["vocab"].astype(np.int64) - finite.sum(axis=1)
    for count in ("nan_count", "posinf_count", "neginf_count"):
        outside -= rows[count]
    tail = np.minimum(np.log(mass / np.maximum(outside, 1)), np.where(finite, table, np.inf).min(axis=1))
    return np.where(tokens >= 0, tail, -rows["entropy"].astype(np.float64))


def fold(
    state: Array,
    first: Array,
    chunk: Chunk,
    high_entropy_bits: float = HIGH_ENTROPY_BITS,
    lengths: Array | None = None,
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
    sums = np.add.reduce(parts, axis=2)  # [_SUMS, S]
    _merge_moments(state, first, parts[ENTROPY], parts[_COUNTS + ENTROPY], sums[ENTROPY], sums[_COUNTS + ENTROPY])
    _slide_group(state, first, parts[CONFIDENCE:_TOKENS:COLUMNS], lengths)
    # Not `state["sums"] += ...`: that would also copy the field onto itself.
    np.add(state["sums"], sums.T, out=state["sums"])
    peaks = np.empty((3, len(state)))
    np.fmax.reduce(values[:MARGIN], axis=2, out=peaks[:MARGIN])
    np.negative(np.fmin.reduce(values[MARGIN], axis=1), out=peaks[MARGIN])
    np.fmax(state["peaks"], peaks.T, out=state["peaks"])
    np.logical_or(state["nan"], chunk.nan, out=state["nan"])
    np.logical_or(state["inf"], chunk.inf, out=state["inf"])


def _merge_moments(state: Array, first: Array, entropy: Array, finite: Array, total: Array, count: Array) -> None:
    """Merge the chunk's central moments into the state's (Chan, Golub, LeVeque 1979; Pébay 2008 for the co-moment).

    Unlike sums of squares these do not cancel where a long flat series has a large mean and a small spread.

    Args:
        state, first: as in :func:`fold`; ``state["sums"]`` is still without the chunk.
        entropy: ``[S, T]`` bits, 0 where not known.
        finite: ``[S, T]`` float64, 1 where known, else 0.
        total, count: ``[S]``, their sums.
    """
    n = np.maximum(count, 1.0)
    middle = (entropy.shape[1] - 1) / 2
    x = np.arange(entropy.shape[1]) - middle  # about the chunk's middle: few and small, so squares do not cancel
    index, square = np.einsum("st,kt->ks", finite, np.array((x, x * x)))
    means = np.empty((len(state), 2))
    np.divide(total, n, out=means[:, 0])
    np.divide(index, n, out=means[:, 1])
    y = (entropy - means[:, :1]) * finite
    moments = np.empty((len(state), 3))
    np.einsum("st,st->s", y, y, out=moments[:, 0])
    np.subtract(square, index * means[:, 1], out=moments[:, 1])
    np.einsum("st,t->s", y, x, out=moments[:, 2])
    means[:, 1] += first + middle

    before = state["sums"][:, _COUNTS + ENTROPY]
    share = count / np.maximum(before + count, 1.0)
    means -= state["means"]
    moments[:, :2] += means * means * (before * share)[:, None]
    moments[:, 2] += means[:, 0] * means[:, 1] * (before * share)
    np.add(state["moments"], moments, out=state["moments"])
    np.add(state["means"], means * share[:, None], out=state["means"])


def _slide_group(state: Array, first: Array, confidence: Array, lengths: Array | None) -> None:
    """Lowest mean confidence over groups of :data:`GROUP` successive tokens (arXiv:2508.15260, eq. 4 and 6).

    ``confidence [2, S, T]`` has the values, 0 where there is none, and 1 where there is one.
    """
    tokens = confidence.shape[2]
    sums = np.empty((2, len(state), GROUP - 1 + tokens))
    sums[:, :, : GROUP - 1] = state["group"].swapaxes(0, 1)
    sums[:, :, GROUP - 1 :] = confidence
    state["group"] = sums[:, :, tokens:].swapaxes(0, 1)
    span = 1
    while span < GROUP:  # sums over 2, 4, 8, 16 tokens
        sums = sums[:, :, span:] + sums[:, :, :-span]
        span *= 2
    total, count = sums  # [S, T], of the groups that end at each token
    whole = count > 0.0
    if first.min() < GROUP - 1:
        whole &= first[:, None] + np.arange(tokens) >= GROUP - 1
    if lengths is not None:
        whole &= np.arange(tokens) < lengths[:, None]
    means = np.full(total.shape, np.inf)
    np.divide(total, count, out=means, where=whole)
    np.minimum(state["group_low"], means.min(axis=1), out=state["group_low"])


def summaries(state: Array) -> list[Features]:
    """Features of each of the states ``[S]``."""
    columns = (state[name].tolist() for name in ("sums", "peaks", "moments", "group_low"))
    return [_summary(*values) for values in zip(*columns, strict=True)]


def _summary(sums: list[float], peaks: list[float], moments: list[float], group_low: float) -> Features:
    entropies, surprisals, margins, masses, confidences = sums[_COUNTS:_TOKENS]
    surprisal = sums[SURPRISAL] / surprisals if surprisals else None
    confidence = sums[CONFIDENCE] / confidences if confidences else None
    return Features(
        tokens=int(sums[_TOKENS]),
        entropy_mean=sums[ENTROPY] / entropies if entropies else None,
        entropy_max=peaks[ENTROPY] if entropies else None,
        entropy_std=math.sqrt(max(moments[0], 0.0) / entropies) if entropies else None,
        entropy_slope=moments[2] / moments[1] if entropies > 1 and moments[1] > 0.0 else None,
        entropy_sum=sums[ENTROPY] if entropies else None,
        surprisal_mean=surprisal,
        surprisal_max=peaks[SURPRISAL] if surprisals else None,
        surprisal_sum=sums[SURPRISAL] if surprisals else None,
        perplexity=None if surprisal is None else 2.0 ** min(surprisal, _MAX_EXPONENT),
        margin_mean=sums[MARGIN] / margins if margins else None,
        margin_min=-peaks[MARGIN] if margins else None,
        topk_mass_mean=sums[TOPK_MASS] / masses if masses else None,
        confidence_mean=confidence,
        confidence_min=group_low if math.isfinite(group_low) else confidence,
        high_entropy_steps=int(sums[_HIGH]),
        surprisal_estimated=int(sums[_ESTIMATED]),
    )


def group_means(values: Array) -> Array:
    """Mean over the group of :data:`GROUP` tokens that ends at each token, ``[T]``; NaN before there is a whole group.

    A series shorter than a group is one group.
    """
    known = np.isfinite(values)
    total = np.concatenate(([0.0], np.where(known, values, 0.0).cumsum(dtype=np.float64)))
    count = np.concatenate(([0], known.cumsum()))
    size = min(GROUP, len(values))
    means = np.full(len(values), np.nan)
    with np.errstate(invalid="ignore"):
        means[size - 1 :] = (total[size:] - total[:-size]) / (count[size:] - count[:-size])
    return means
