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

STATE: Final = np.dtype(
    [
        ("tokens", "<i8"),
        ("high_entropy_steps", "<i8"),
        ("surprisal_estimated", "<i8"),
        ("nan", "?"),
        ("inf", "?"),
        ("count", "<i8", (COLUMNS,)),  # finite values so far, by column; and their sum and extremes
        ("total", "<f8", (COLUMNS,)),
        ("low", "<f8", (COLUMNS,)),
        ("high", "<f8", (COLUMNS,)),
        ("entropy_mean", "<f8"),  # central moments of entropy (y) over output index (x), merged chunk by chunk
        ("entropy_square", "<f8"),  # sum (y - mean y)^2
        ("index_mean", "<f8"),
        ("index_square", "<f8"),  # sum (x - mean x)^2
        ("cross", "<f8"),  # sum (x - mean x)(y - mean y)
        ("group", "<f8", (GROUP - 1,)),  # the last confidences, NaN where there is none
        ("group_low", "<f8"),
    ]
)
"""What is kept of a sequence: about 350 bytes."""


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
    state["low"] = np.inf
    state["high"] = -np.inf
    state["group"] = np.nan
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


def fold(state: Array, first: Array, chunk: Chunk, high_entropy_bits: float = HIGH_ENTROPY_BITS) -> None:
    """Take a chunk into the states, in place.

    Args:
        state: ``[S]`` of :data:`STATE`.
        first: ``[S]`` int, output index of each sequence's first token in the chunk.
        chunk: the tokens that follow those folded before, without a gap: what is missing is in it as not observed.
    """
    values = chunk.values
    state["tokens"] += chunk.observed.sum(axis=1)
    state["surprisal_estimated"] += chunk.estimated.sum(axis=1)
    state["nan"] |= chunk.nan
    state["inf"] |= chunk.inf
    state["high_entropy_steps"] += (values[ENTROPY] > high_entropy_bits).sum(axis=1)
    finite = np.isfinite(values)
    known = np.where(finite, values, 0.0)
    count, total = finite.sum(axis=2), known.sum(axis=2)  # [COLUMNS, S]
    _merge_moments(state, first, known[ENTROPY], finite[ENTROPY], count[ENTROPY], total[ENTROPY])
    state["count"] += count.T
    state["total"] += total.T
    state["low"] = np.minimum(state["low"], np.fmin.reduce(values, axis=2, initial=np.inf).T)
    state["high"] = np.maximum(state["high"], np.fmax.reduce(values, axis=2, initial=-np.inf).T)
    _slide_group(state, first, values[CONFIDENCE])


def _merge_moments(state: Array, first: Array, entropy: Array, finite: Array, count: Array, total: Array) -> None:
    """Merge the chunk's central moments into the state's (Chan, Golub, LeVeque 1979; Pébay 2008 for the co-moment).

    Unlike sums of squares these do not cancel where a long flat series has a large mean and a small spread.
    """
    n = np.maximum(count, 1)
    index = (first[:, None] + np.arange(entropy.shape[1])) * finite
    mean, index_mean = total / n, index.sum(axis=1) / n
    y = (entropy - mean[:, None]) * finite
    x = (index - index_mean[:, None]) * finite
    before = state["count"][:, ENTROPY]
    share = count / np.maximum(before + count, 1)
    weight = before * share
    dy, dx = mean - state["entropy_mean"], index_mean - state["index_mean"]
    state["entropy_square"] += np.einsum("st,st->s", y, y) + dy * dy * weight
    state["index_square"] += np.einsum("st,st->s", x, x) + dx * dx * weight
    state["cross"] += np.einsum("st,st->s", x, y) + dx * dy * weight
    state["entropy_mean"] += dy * share
    state["index_mean"] += dx * share


def _slide_group(state: Array, first: Array, confidence: Array) -> None:
    """Lowest mean confidence over groups of :data:`GROUP` successive tokens (arXiv:2508.15260, eq. 4 and 6)."""
    tail = np.concatenate((state["group"], confidence), axis=1)
    finite = np.isfinite(tail)
    sums = np.zeros((2, len(tail), tail.shape[1] + 1))
    np.cumsum(np.where(finite, tail, 0.0), axis=1, out=sums[0, :, 1:])
    np.cumsum(finite, axis=1, out=sums[1, :, 1:])
    total, count = sums[:, :, GROUP:] - sums[:, :, :-GROUP]
    whole = (count > 0) & (first[:, None] + np.arange(confidence.shape[1]) >= GROUP - 1)
    means = np.where(whole, total / np.maximum(count, 1.0), np.inf)
    state["group_low"] = np.minimum(state["group_low"], means.min(axis=1, initial=np.inf))
    state["group"] = tail[:, tail.shape[1] - (GROUP - 1) :]


def summary(state: Any) -> Features:
    """Features of one state (an element of a :data:`STATE` array)."""
    count, total, low, high = (state[name].tolist() for name in ("count", "total", "low", "high"))

    def mean(column: int) -> float | None:
        return total[column] / count[column] if count[column] else None

    n = count[ENTROPY]
    index_square = float(state["index_square"])
    surprisal, group_low = mean(SURPRISAL), float(state["group_low"])
    return Features(
        tokens=int(state["tokens"]),
        entropy_mean=mean(ENTROPY),
        entropy_max=high[ENTROPY] if n else None,
        entropy_std=math.sqrt(max(float(state["entropy_square"]), 0.0) / n) if n else None,
        entropy_slope=float(state["cross"]) / index_square if n > 1 and index_square > 0.0 else None,
        entropy_sum=total[ENTROPY] if n else None,
        surprisal_mean=surprisal,
        surprisal_max=high[SURPRISAL] if count[SURPRISAL] else None,
        surprisal_sum=total[SURPRISAL] if count[SURPRISAL] else None,
        perplexity=None if surprisal is None else 2.0 ** min(surprisal, _MAX_EXPONENT),
        margin_mean=mean(MARGIN),
        margin_min=low[MARGIN] if count[MARGIN] else None,
        topk_mass_mean=mean(TOPK_MASS),
        confidence_mean=mean(CONFIDENCE),
        confidence_min=group_low if math.isfinite(group_low) else mean(CONFIDENCE),
        high_entropy_steps=int(state["high_entropy_steps"]),
        surprisal_estimated=int(state["surprisal_estimated"]),
    )
