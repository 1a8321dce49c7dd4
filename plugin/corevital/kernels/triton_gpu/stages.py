"""The compiled half of :mod:`corevital.kernels.triton_gpu`: the two kernels that a batch goes through.

:func:`chunk_kernel` reads the logits, the only time most of them are read. For each chunk it leaves the sums from which
all else follows, relative to the chunk's peak (online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867): with
u = log2(e) (logit - peak) and e = 2^u, they are Σe, Σeu and Σeu². Of each group of neighbours it leaves the rank of the
highest logit.

:func:`row_kernel` joins a row's chunks, and searches its best groups for the top k. Those are within the k groups of
the highest maxima, equal maxima by position: whatever lies outside comes after k other entries. Because the groups are
of neighbours, ties stay with the lower id.

Triton's language is not typed: ``tl.tensor`` stands for a scalar, a pointer or a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import triton
import triton.language as tl

from corevital.kernels.stats import HEAD_WORDS, MASS_TOKENS

__all__ = ["CHUNK", "GROUP", "LINE_BITS", "PARTIALS", "chunk_kernel", "row_kernel"]

GROUP = tl.constexpr(64)
"""Logits whose highest is ranked for all of them."""

CHUNK = tl.constexpr(4096)
"""Logits that one program reads: 32 a thread, which fit its registers twice over."""

LINE_BITS = tl.constexpr(128)
"""Bits that a thread loads at a time; they start at a multiple of their size."""

PARTIALS = tl.constexpr(7)
"""float32 words that a chunk leaves: peak, Σe, Σeu, Σeu², and the counts of NaN, +inf and -inf, exact below 2^24."""

_MASS_TOKENS = tl.constexpr(MASS_TOKENS)
_HEAD = tl.constexpr(HEAD_WORDS)
_INF = tl.constexpr(float("inf"))
_LN2 = tl.constexpr(0.6931471805599453)
_LOG2E = tl.constexpr(1.4426950408889634)
# 2^u is 0 in float32 well before this, so that 2^u * u is 0 there, not the NaN of 0 * -inf.
_LOWEST = tl.constexpr(-200.0)
_LOW_31_BITS = tl.constexpr(0x7FFFFFFF)
_NO_RANK = tl.constexpr(-0x80000000)  # below that of -inf
_NO_KEY = tl.constexpr(-0x8000000000000000)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def device(function: _Function) -> _Function:
    """Compile a function for use by kernels."""
    return cast(_Function, triton.jit(function))


def kernel(*runtime: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a kernel once for any values of these arguments.

    Triton otherwise compiles another variant where an integer is 1 or divides by 16, or an address is aligned: rows,
    strides and slices of logits differ from step to step, and an engine may forbid compilation once it serves.
    """
    return cast(Callable[[Callable[..., Any]], Any], triton.jit(do_not_specialize=list(runtime)))


@device
def widened(x: tl.tensor) -> tl.tensor:
    """float32 from float32 or bfloat16, which is its upper half. Triton's interpreter converts subnormals wrongly."""
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x


@device
def _rank(x: tl.tensor) -> tl.tensor:
    """Integers that compare as the floats do (IEEE 754: negative ones in reverse); NaN below all else."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0.0 equals 0.0
    return tl.where(x == x, bits ^ ((bits >> 31) & _LOW_31_BITS), _NO_RANK)  # noqa: PLR0124


@device
def _key(rank: tl.tensor, position: tl.tensor) -> tl.tensor:
    """int64 of which no two are equal: the higher rank first, then the lower position."""
    key = (rank.to(tl.int64) << 32) | (position ^ _LOW_31_BITS).to(tl.int64)
    return tl.where(rank == _NO_RANK, _NO_KEY, key)


@device
def _position(key: tl.tensor) -> tl.tensor:
    return (key & _LOW_31_BITS).to(tl.int32) ^ _LOW_31_BITS


@device
def _value(key: tl.tensor) -> tl.tensor:
    """The float32 that the key's rank is of; -0.0 has become 0.0."""
    rank = (key >> 32).to(tl.int32)
    return (rank ^ ((rank >> 31) & _LOW_31_BITS)).to(tl.float32, bitcast=True)


@device
def _highest(keys: tl.tensor, kept: tl.tensor, PLACES: tl.constexpr) -> tl.tensor:
    """The ``kept`` highest of these keys, falling, in ``[PLACES]``; the places after them hold no key."""
    place = tl.arange(0, PLACES)
    highest = tl.full([PLACES], _NO_KEY, tl.int64)
    for i in range(kept):
        best = tl.max(keys, axis=0)
        highest = tl.where(place == i, best, highest)
        keys = tl.where(keys == best, _NO_KEY, keys)
    return highest


@device
def _add(
    a0: tl.tensor,
    a1: tl.tensor,
    a2: tl.tensor,
    a3: tl.tensor,
    b0: tl.tensor,
    b1: tl.tensor,
    b2: tl.tensor,
    b3: tl.tensor,
) -> tl.tensor:
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@device
def _sums(a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, FUSED: tl.constexpr) -> tl.tensor:
    """The sums of four tensors of a chunk's size. ``FUSED``: in one pass, so that warps wait for each other once.

    Triton's interpreter does fused ones entry by entry, and too slowly for most tests; it can do no fused one over
    more than one axis.
    """
    a, b, c, d = tl.reshape(a, [CHUNK]), tl.reshape(b, [CHUNK]), tl.reshape(c, [CHUNK]), tl.reshape(d, [CHUNK])
    if FUSED:
        a, b, c, d = tl.reduce((a, b, c, d), 0, _add)
    else:
        a, b, c, d = tl.sum(a, axis=0), tl.sum(b, axis=0), tl.sum(c, axis=0), tl.sum(d, axis=0)
    return a, b, c, d


@device
def _shift(row: tl.tensor, logits: tl.tensor, lead: tl.tensor, stride: tl.tensor) -> tl.tensor:
    """Entries between a row's start and the last multiple of :data:`LINE_BITS` at or before it.

    Chunks and groups are counted from there, so that a thread loads 16 bytes at a time whatever the vocabulary is.
    """
    return ((lead + row * stride) % (LINE_BITS // logits.dtype.element_ty.primitive_bitwidth)).to(tl.int32)


@kernel("logits", "lead", "stride", "at", "vocab", "chunks", "partials", "ranks")
def chunk_kernel(
    logits: tl.tensor,
    lead: tl.tensor,
    stride: tl.tensor,
    at: tl.tensor,
    vocab: tl.tensor,
    chunks: tl.tensor,
    partials: tl.tensor,
    ranks: tl.tensor,
    FUSED: tl.constexpr,
) -> None:
    """One chunk of one row. The grid is ``rows * chunks`` programs, chunks of a row next to each other.

    Args:
        logits: ``[rows, vocab]`` float32 or bfloat16, a row contiguous.
        lead: entries between the first row's start and the last multiple of :data:`LINE_BITS` at or before it.
        stride: entries from one row to the next.
        at: ``[rows]`` int32, which of the logits' rows each one is.
        vocab: at least 1.
        chunks: of a row, as many as hold ``vocab`` entries behind the largest :func:`_shift` of the batch.
        partials: written, ``[rows, PARTIALS, chunks]`` float32.
        ranks: written, ``[rows, chunks * CHUNK / GROUP]`` int32: the rank of each group's highest entry.
        FUSED: see :func:`_sums`.
    """
    GROUPS: tl.constexpr = CHUNK // GROUP
    row = (tl.program_id(0) // chunks).to(tl.int64)  # rows * vocab exceeds 2^31
    chunk = tl.program_id(0) % chunks
    group = tl.arange(0, GROUPS)
    place = chunk * CHUNK + group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]  # [GROUPS, GROUP]
    source = tl.load(at + row).to(tl.int64)
    first = _shift(source, logits, lead, stride)
    end = first + vocab
    start = tl.multiple_of(logits + (source * stride - first), 16)
    # What lies outside of the row is NaN: left out of everything, but for the count.
    if (chunk * CHUNK >= first) & ((chunk + 1) * CHUNK <= end):  # nearly always, and such loads need no mask
        x = widened(tl.load(start + place))
    else:
        x = widened(tl.load(start + place, mask=(place >= first) & (place < end), other=float("nan")))

    highest = tl.max(x, axis=1)  # [GROUPS]; passes over NaN, and is NaN where there is nothing else
    tl.store(ranks + (row * chunks + chunk) * GROUPS + group, _rank(highest))
    peak = tl.max(highest, axis=0)
    posinfs = 0
    if peak == _INF:  # rare, and then the sums are those of the finite entries
        posinfs = tl.sum(tl.reshape((x == _INF).to(tl.int32), [CHUNK]), axis=0)
        x = tl.where(x == _INF, -_INF, x)
        peak = tl.max(tl.max(x, axis=1), axis=0)
    peak = tl.where(peak == peak, peak, -_INF)  # noqa: PLR0124

    # Subtract before scaling: u = logit log2(e) - peak log2(e) would cancel badly for large logits.
    below = x - tl.where(peak == -_INF, 0.0, peak)
    u = tl.maximum(below * _LOG2E, _LOWEST)  # the number where the other is NaN: such entries add nothing
    e = tl.exp2(u)
    eu = e * u
    s0, s1, s2, sum_below = _sums(e, eu, eu * u, below, FUSED)
    outside = CHUNK - tl.maximum(tl.minimum((chunk + 1) * CHUNK, end) - tl.maximum(chunk * CHUNK, first), 0)
    nans = 0
    neginfs = 0
    if (sum_below > -_INF) == 0:  # NaN or -inf: rare, but among masked tokens
        nans = tl.sum(tl.reshape((x != x).to(tl.int32), [CHUNK]), axis=0) - outside  # noqa: PLR0124
        neginfs = tl.sum(tl.reshape((x == -_INF).to(tl.int32), [CHUNK]), axis=0) - posinfs

    partial = partials + row * PARTIALS * chunks + chunk
    tl.store(partial, peak)
    tl.store(partial + chunks, s0)
    tl.store(partial + 2 * chunks, s1)
    tl.store(partial + 3 * chunks, s2)
    tl.store(partial + 4 * chunks, nans)
    tl.store(partial + 5 * chunks, posinfs)
    tl.store(partial + 6 * chunks, neginfs)


@device
def _moments(partial: tl.tensor, chunks: tl.tensor, CHUNKS: tl.constexpr) -> tl.tensor:
    """A row's peak, Σe, E[u] and E[u²] from those of its chunks; Σe is 1 in a row without a finite entry."""
    chunk = tl.arange(0, CHUNKS)
    there = chunk < chunks
    peaks = tl.load(partial + chunk, mask=there, other=-_INF)
    s0 = tl.load(partial + chunks + chunk, mask=there, other=0.0)
    s1 = tl.load(partial + 2 * chunks + chunk, mask=there, other=0.0)
    s2 = tl.load(partial + 3 * chunks + chunk, mask=there, other=0.0)
    peak = tl.max(peaks, axis=0)
    empty = peak == -_INF
    # Relative to the row's peak, each u is lower by d.
    d = tl.maximum((peaks - tl.where(empty, 0.0, peak)) * _LOG2E, _LOWEST)
    scale = tl.exp2(d)
    total = tl.where(empty, 1.0, tl.sum(scale * s0, axis=0))
    mean = tl.sum(scale * (s1 + d * s0), axis=0) / total
    square = tl.sum(scale * (s2 + 2.0 * d * s1 + d * d * s0), axis=0) / total
    return peak, total, mean, square


@device
def _count(counts: tl.tensor, chunks: tl.tensor, CHUNKS: tl.constexpr) -> tl.tensor:
    chunk = tl.arange(0, CHUNKS)
    return tl.sum(tl.load(counts + chunk, mask=chunk < chunks, other=0.0), axis=0).to(tl.int32)


@device
def _best_groups(
    ranks: tl.tensor, groups: tl.tensor, kept: tl.tensor, RANKS: tl.constexpr, PLACES: tl.constexpr
) -> tl.tensor:
    """The groups of the ``kept`` highest ranks, ``[PLACES]`` int32; -1 where there is none."""
    group = tl.arange(0, RANKS)
    rank = tl.load(ranks + group, mask=group < groups, other=_NO_RANK)
    keys = _highest(_key(rank, group), kept, PLACES)
    return tl.where(keys == _NO_KEY, -1, _position(keys))


@device
def _best_entries(
    row: tl.tensor, first: tl.tensor, vocab: tl.tensor, groups: tl.tensor, kept: tl.tensor, PLACES: tl.constexpr
) -> tl.tensor:
    """The ``kept`` highest entries of these groups: ids and float32 logits, ``[PLACES]``; -1 and -inf for none."""
    at = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :] - first  # [PLACES, GROUP]
    x = widened(tl.load(row + at, mask=(at >= 0) & (at < vocab), other=float("nan")))
    keys = _highest(tl.reshape(_key(_rank(x), at), [PLACES * GROUP]), kept, PLACES)
    found = keys != _NO_KEY
    return tl.where(found, _position(keys), -1), tl.where(found, _value(keys), -_INF)


@kernel(
    "logits",
    "lead",
    "stride",
    "at",
    "vocab",
    "chunks",
    "partials",
    "ranks",
    "table",
    "width",
    "top_k",
    "slots",
    "positions",
)
def row_kernel(
    logits: tl.tensor,
    lead: tl.tensor,
    stride: tl.tensor,
    at: tl.tensor,
    vocab: tl.tensor,
    chunks: tl.tensor,
    partials: tl.tensor,
    ranks: tl.tensor,
    table: tl.tensor,
    width: tl.tensor,
    top_k: tl.tensor,
    slots: tl.tensor,
    positions: tl.tensor,
    CHUNKS: tl.constexpr,
    PLACES: tl.constexpr,
    PLACED: tl.constexpr,
) -> None:
    """One row, from what :func:`chunk_kernel` left of its chunks. The grid is ``rows`` programs.

    Args:
        logits: as for :func:`chunk_kernel`, and so are those up to ``ranks``.
        lead: likewise.
        stride: likewise.
        at: likewise.
        vocab: likewise.
        chunks: likewise.
        partials: read.
        ranks: read.
        table: written, the words of :class:`corevital.kernels.stats.TokenStats`.
        width: words from one of its rows to the next.
        top_k: at least 1.
        slots: ``[rows]`` int32 or int64, written to the last word but one before a row's where ``PLACED``.
        positions: likewise, to the last word before it.
        CHUNKS: a power of two, at least ``chunks``.
        PLACES: a power of two, at least ``top_k`` and ``MASS_TOKENS``.
    """
    row = tl.program_id(0).to(tl.int64)
    partial = partials + row * PARTIALS * chunks
    peak, total, mean, square = _moments(partial, chunks, CHUNKS)
    nans = _count(partial + 4 * chunks, chunks, CHUNKS)
    posinfs = _count(partial + 5 * chunks, chunks, CHUNKS)
    neginfs = _count(partial + 6 * chunks, chunks, CHUNKS)
    # ln p = ln(2) (u - log2(Σe)), so H = ln(2) (log2(Σe) - E[u]), and the variance of ln p is ln(2)^2 that of u.
    log2_total = tl.log2(total)
    log_total = log2_total * _LN2
    entropy = tl.maximum((log2_total - mean) * _LN2, 0.0)
    varentropy = tl.maximum(square - mean * mean, 0.0) * (_LN2 * _LN2)

    kept = tl.maximum(top_k, _MASS_TOKENS)
    groups = chunks * (CHUNK // GROUP)
    best = _best_groups(ranks + row * groups, groups, kept, CHUNKS * (CHUNK // GROUP), PLACES)
    source = tl.load(at + row).to(tl.int64)
    first = _shift(source, logits, lead, stride)
    ids, value = _best_entries(logits + source * stride, first, vocab, best, kept, PLACES)
    place = tl.arange(0, PLACES)
    empty = peak == -_INF
    origin = tl.where(empty, 0.0, peak)
    # Not logit - logsumexp: that cancels for large logits.
    logprob = tl.where(value == _INF, _INF, tl.minimum(value - origin - log_total, 0.0))
    p = tl.exp2(logprob * _LOG2E)
    p1 = tl.sum(tl.where(place == 0, p, 0.0), axis=0)
    p2 = tl.sum(tl.where(place == 1, p, 0.0), axis=0)
    mass = tl.minimum(tl.sum(tl.where(place < _MASS_TOKENS, p, 0.0), axis=0), 1.0)

    # Stored as float32, of which the table then holds the bits.
    undefined = empty | (posinfs > 0)
    words = table + row * width
    if PLACED:
        tl.store(words - 2, tl.load(slots + row).to(tl.int32))
        tl.store(words - 1, tl.load(positions + row).to(tl.int32))
    floats = words.to(tl.pointer_type(tl.float32))
    tl.store(words, nans)
    tl.store(words + 1, posinfs)
    tl.store(words + 2, neginfs)
    tl.store(floats + 3, tl.where(posinfs > 0, _INF, tl.where(empty, -_INF, peak + log_total)))
    tl.store(floats + 4, tl.where(undefined, float("nan"), entropy))
    tl.store(floats + 5, tl.where(undefined, float("nan"), varentropy))
    tl.store(floats + 6, tl.max(value, axis=0))
    tl.store(floats + 7, tl.where(undefined, float("nan"), p1))
    tl.store(floats + 8, tl.where(undefined, float("nan"), p1 - p2))
    tl.store(floats + 9, tl.where(undefined, float("nan"), mass))
    tl.store(words + 10, vocab)
    tl.store(words + _HEAD + place, ids, mask=place < top_k)
    tl.store(floats + _HEAD + top_k + place, logprob, mask=place < top_k)
