"""What is known of each token by itself, of many sequences at once: from rows and sampled tokens to numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ENTROPY: Final = 0
SURPRISAL: Final = 1
MARGIN: Final = 2
TOPK_MASS: Final = 3
CONFIDENCE: Final = 4
COLUMNS: Final = 5
"""Per-token values, in this order: entropy (bits), surprisal (bits), margin, top-10 mass, confidence (nats)."""

_BITS: Final = 1.0 / math.log(2.0)
_LEAST_MASS: Final = 1e-7
"""Float32 sums of twenty probabilities know the mass of the tail no better than this."""


def ids(token_ids: Sequence[int]) -> Array:
    """A client's tokens as int32; -1 for all where one cannot be a token, for their number still counts."""
    try:
        return np.asarray(token_ids, np.int32)
    except (OverflowError, TypeError, ValueError):
        return np.full(len(token_ids), -1, np.int32)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Values of ``T`` successive tokens of each of ``S`` sequences.

    Attributes:
        values: ``[COLUMNS, S, T]`` float64, NaN where a value is not known.
        observed: ``[S, T]`` bool, whether there was a row at all.
        estimated: ``[S, T]`` bool, whether the surprisal is an estimate.
        nan, inf: ``[S]`` bool, whether a row had a NaN or +Inf among its logits.
        top: ``[S, T]`` int, id of the likeliest token, negative where not known.
        forced: ``[S, T]`` bool, whether all tokens but one were masked; None where that is so nowhere. Such a token has
            no values: that it is certain comes of the mask and not of the model.
        rows: ``[S, T]``, those that the values are of; None where they are gone.
    """

    values: Array
    observed: Array
    estimated: Array
    nan: Array
    inf: Array
    top: Array
    forced: Array | None = None
    rows: Array | None = None


def measure(rows: Array, observed: Array, tokens: Array, logprobs: Array) -> Chunk:
    """Per-token values of rows and of the tokens sampled from them.

    Confidence is DeepConf's token confidence, minus the mean log-probability of the k likeliest tokens (Fu et al. 2025,
    arXiv:2508.15260, eq. 2), over those of the 20 that are not masked. A row whose entropy is NaN (a +Inf among its
    logits, or none finite) gives no values: it counts as observed and raises its flag, and is left out of every mean.
    So is a token that the engine forced, by a grammar as a rule: one whose row has a single token that is not masked.

    Args:
        rows: ``[S, T]`` of :data:`corevital.frames.layout.ROW`; anything where not ``observed``.
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
        forced = _confidence(rows, observed, out=values[CONFIDENCE])
    usable = observed & np.isfinite(values[ENTROPY])
    finite = np.isfinite(values)
    finite &= usable if forced is None else usable & ~forced
    if not finite.all():
        values[~finite] = np.nan
        estimated &= finite[SURPRISAL]
    nan: Array = np.any((rows["nan_count"] > 0) & observed, axis=1)
    inf: Array = np.any((rows["posinf_count"] > 0) & observed, axis=1)
    top = np.where(observed, rows["topk_ids"][..., 0], -1)
    return Chunk(values, observed, estimated, nan, inf, top, forced, rows)


def _confidence(rows: Array, observed: Array, out: Array) -> Array | None:
    """Minus the mean log-probability of each row's table, over finite entries, into ``out [S, T]``.

    Returns:
        :attr:`Chunk.forced`. It costs nothing where no row has masked tokens in its table.
    """
    logprobs = rows["topk_logprobs"]
    total = logprobs.sum(axis=-1)
    np.multiply(total, -1.0 / logprobs.shape[-1], out=out)
    partial = ~np.isfinite(total)
    if not partial.any():
        return None
    some = logprobs[partial]
    finite = np.isfinite(some)
    count = finite.sum(axis=-1)
    out[partial] = np.where(count > 0, -np.where(finite, some, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)
    forced = np.zeros(partial.shape, bool)
    forced[partial] = rows["neginf_count"][partial] + 1 == rows["vocab"][partial]
    forced &= observed
    return forced if forced.any() else None


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
