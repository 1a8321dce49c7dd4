"""The compiled half of :mod:`corevital.kernels.numba_cpu`.

A row goes through in blocks that stay in the first-level cache; a float32 one is fetched while the one before it is
summed. For each block, first the largest logit of every group of 64: they give the block's peak, and mark the few
groups worth searching for the top k. Then the sums from which all else follows, relative to the row's peak so far and
rescaled when a later block raises it (online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867): with
u = log2(e) (logit - peak) and e = 2^u, they are Σe, Σeu and Σeu².
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import overload

from corevital.kernels.numba_cpu.intrinsics import as_bits, as_float, compiled, fetch, pointer, take
from corevital.kernels.stats import HEAD_WORDS, MASS_TOKENS

__all__ = ["compiled_task"]

_Array = npt.NDArray[Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])

_BLOCK: Final = 4096  # logits: 16 KB of float32, so that all passes over a block but the first read the L1 cache
# Logits whose sums are made while as many of the next block are fetched. Half as many cost a tenth of the time where
# all is in the cache, and twice as many are more lines than a core fetches at once.
_PIECE: Final = 512
_LINE: Final = 16  # logits, 64 bytes
_GROUP: Final = 64  # logits: one comparison decides whether any of them can be among the top k

_F = np.float32
_I = np.int32
_INF: Final = _F(math.inf)
_LN2: Final = math.log(2.0)
_LOG2E: Final = 1.0 / _LN2
_LOG2E_F: Final = _F(_LOG2E)
# 2^u is a normal float32 from here on. What lies below adds nothing to a sum that is at least 1.
_LOWEST: Final = _F(-126)
# The bits of float32 (IEEE 754): all but the sign; infinity, with only NaN beyond it; -infinity, also as an ordered
# integer (see `_ordered`); and the bounds of int32.
_MAGNITUDE: Final = _I(0x7FFFFFFF)
_INF_BITS: Final = _I(0x7F800000)
_NEGINF_BITS: Final = _I(-0x00800000)
_NEGINF_ORDERED: Final = _I(-0x7F800001)
_MOST: Final = _I(0x7FFFFFFF)
_LEAST: Final = _I(-0x80000000)

# numba has no vector exp2, so: the polynomial that meets 2^f on [0, 1] at the zeros of the Chebyshev polynomial T6,
# stretched so that the first of them is f = 0. It is then exact there (the likeliest token has e = 1), and elsewhere
# within 1.1e-7 of 2^f, relatively, which is as good as float32 itself.
_ZEROS: Final = np.cos((2 * np.arange(6) + 1) * np.pi / 12)
_NODES: Final = (_ZEROS + _ZEROS[0]) / (1 + _ZEROS[0])
_C1, _C2, _C3, _C4, _C5 = (_F(c) for c in np.polynomial.polynomial.polyfit(_NODES, np.exp2(_NODES), 5)[1:])


def _inner(fastmath: bool = False) -> Callable[[_Function], _Function]:
    """Compile a function for use by compiled functions."""
    # Sums may be reordered, which vectorises them. NaN and infinities must survive: neither 'nnan' nor 'ninf'.
    flags = {"reassoc", "contract", "nsz", "arcp"} if fastmath else False
    return cast(Callable[[_Function], _Function], numba.njit(nogil=True, boundscheck=False, fastmath=flags))


# Indices are unsigned: a signed one that numba cannot trace to range() may be negative, and the wrap-around it then
# adds to every access turns vector loads into gathers.


def _block(flat: _Array, start: int, stop: int, widened: _Array) -> _Array:
    """The float32 bits of a stretch of logits, which come as the bits of float32 or of bfloat16."""
    raise NotImplementedError("for compiled code")


@cast(Callable[[_Function], _Function], overload(_block, jit_options={"boundscheck": False}))
def _block_for(flat: _Array, start: int, stop: int, widened: _Array) -> Callable[..., _Array]:
    # Called with numba's types of the arguments; the annotations have to be those of the functions it returns.
    def float32(flat: _Array, start: int, stop: int, widened: _Array) -> _Array:
        return flat[start:stop]

    def bfloat16(flat: _Array, start: int, stop: int, widened: _Array) -> _Array:
        half = flat[start:stop]
        for j in range(half.shape[0]):
            widened[j] = _I(half[j]) << _I(16)  # bfloat16 is the upper half of a float32
        return widened[: stop - start]

    return float32 if flat.dtype == numba.types.int32 else bfloat16


@_inner()
def _ordered(bits: _I) -> _I:
    """Integers that compare as the floats do: negative floats have theirs in reverse. Its own inverse."""
    return _I(bits ^ ((bits >> _I(31)) & _MAGNITUDE))


@_inner()
def _group_maxima(block: _Array, maxima: _Array) -> tuple[_I, _I]:
    """Fill in the maximum of every group; all as ordered integers.

    Returns:
        The largest and the smallest entry of the block.
    """
    n = block.shape[0]
    largest = _LEAST
    smallest = _MOST
    for g in range(maxima.shape[0]):
        base = np.uint64(g) * np.uint64(_GROUP)
        group_largest = _LEAST
        group_smallest = _MOST
        for j in range(min(_GROUP, n - g * _GROUP)):
            value = _ordered(block[base + np.uint64(j)])
            group_largest = max(group_largest, value)
            group_smallest = min(group_smallest, value)
        maxima[g] = group_largest
        largest = max(largest, group_largest)
        smallest = min(smallest, group_smallest)
    return largest, smallest


@_inner()
def _largest(block: _Array) -> _I:
    """The largest entry, as an ordered integer."""
    largest = _LEAST
    for j in range(block.shape[0]):
        largest = max(largest, _ordered(block[j]))
    return largest


@_inner()
def _count(block: _Array, wanted: _I) -> int:
    """How many entries have exactly these bits."""
    count = _I(0)
    for j in range(block.shape[0]):
        count += _I(block[j] == wanted)
    return int(count)


@_inner()
def _mask_above(block: _Array, limit: _I, cleaned: _Array) -> int:
    """Copy, with -inf in place of all that has a magnitude above the limit; returns how many there were."""
    count = _I(0)
    for j in range(block.shape[0]):
        above = (block[j] & _MAGNITUDE) > limit
        count += _I(above)
        cleaned[j] = _NEGINF_BITS if above else block[j]
    return int(count)


@_inner()
def _least_of_best(maxima: _Array, best: _Array) -> _F:
    """The least of as many of the largest maxima as there are places for; NaN, which nothing is below, if too few.

    Only groups with such a maximum, or a larger one, can hold any of as many tokens.
    """
    last = np.uint64(best.shape[0] - 1)
    best[:] = _LEAST
    for g in range(maxima.shape[0]):
        if maxima[g] > best[last]:
            place = last
            while place > 0 and best[place - np.uint64(1)] < maxima[g]:
                best[place] = best[place - np.uint64(1)]
                place -= np.uint64(1)
            best[place] = maxima[g]
    return _F(as_float(_ordered(best[last])))


@_inner()
def _search(
    flat: _Array, start: int, stop: int, maxima: _Array, widened: _Array, best: _Array, top: _Array, top_ids: _Array
) -> int:
    """Fill in the top k of a row, sorted, reading only groups that can hold any; returns how many places are filled."""
    keep = top.shape[0]
    last = np.uint64(keep - 1)
    threshold = -_INF
    filled = 0
    least = _least_of_best(maxima, best)
    for g in range(maxima.shape[0]):
        largest = as_float(_ordered(maxima[g]))
        if largest < least or (filled == keep and largest <= threshold):
            continue
        first = start + g * _GROUP
        group = _block(flat, first, min(first + _GROUP, stop), widened)
        for j in range(group.shape[0]):
            value = as_float(group[np.uint64(j)])
            # Only what is strictly greater moves up, and ids come in rising order: ties stay with the lower id.
            if value > threshold or (filled < keep and not math.isnan(value)):
                place = np.uint64(min(filled, keep - 1))
                while place > 0 and top[place - np.uint64(1)] < value:
                    top[place] = top[place - np.uint64(1)]
                    top_ids[place] = top_ids[place - np.uint64(1)]
                    place -= np.uint64(1)
                top[place] = value
                top_ids[place] = first - start + j
                if filled < keep:
                    filled += 1
                if filled == keep:
                    threshold = top[last]
    return filled


@_inner(fastmath=True)
def _sums(block: _Array, peak: _F) -> tuple[_F, _F, _F]:
    """Σe, Σeu, Σeu² of a block without NaN or +inf. float32 does: vectorised, each is many short sums."""
    s0, s1, s2 = _F(0), _F(0), _F(0)
    for j in range(block.shape[0]):
        # Subtract before scaling: u = logit log2(e) - peak log2(e) would cancel badly for large logits.
        u = max((as_float(block[j]) - peak) * _LOG2E_F, _LOWEST)
        whole = np.floor(u)
        f = u - whole  # may come out as exactly 1
        mantissa = ((((_C5 * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _F(1)
        e = as_float(as_bits(mantissa) + (_I(whole) << _I(23)))  # times 2^whole: added to the exponent
        eu = e * u
        s0 += e
        s1 += eu
        s2 += eu * u
    return s0, s1, s2


@_inner()
def _row(
    flat: _Array,
    origin: int,
    vocab: int,
    widened: _Array,
    cleaned: _Array,
    maxima: _Array,
    best: _Array,
    top: _Array,
    top_ids: _Array,
) -> tuple[int, _F, float, float, float, int, int, int]:
    """One row. Returns places filled in the top k, the largest finite logit, Σe, Σeu, Σeu², and the three counts."""
    peak = -_INF
    s0, s1, s2 = 0.0, 0.0, 0.0
    nans, posinfs, neginfs = 0, 0, 0
    for start in range(0, vocab, _BLOCK):
        block = _block(flat, origin + start, origin + min(start + _BLOCK, vocab), widened)
        here = maxima[start // _GROUP : start // _GROUP + _BLOCK // _GROUP]
        largest, smallest = _group_maxima(block, here)
        finite = block
        if largest >= _INF_BITS or smallest <= _NEGINF_ORDERED:  # rare: NaN, of either sign, or an infinity
            neginfs += _count(block, _NEGINF_BITS)
            if largest >= _INF_BITS or smallest < _NEGINF_ORDERED:  # not only masked tokens
                finite = cleaned[: block.shape[0]]
                nans += _mask_above(block, _INF_BITS, finite)
                largest, _ = _group_maxima(finite, here)
        if largest == _INF_BITS:
            posinfs += _count(block, _INF_BITS)
            _mask_above(block, _INF_BITS - _I(1), finite)
            largest = _largest(finite)
        block_peak = as_float(_ordered(largest))
        if block_peak == -_INF:
            continue
        if block_peak > peak:
            if peak > -_INF:
                d = max((float(peak) - float(block_peak)) * _LOG2E, -200.0)
                scale = 2.0**d
                s2 = scale * (s2 + 2.0 * d * s1 + d * d * s0)
                s1 = scale * (s1 + d * s0)
                s0 = scale * s0
            peak = block_peak
        for piece in range(0, finite.shape[0], _PIECE):
            ahead = origin + start + _BLOCK + piece
            if flat.itemsize == 4:  # bfloat16 is widened first, which takes as long as its fetching does
                for line in range(0, _PIECE, _LINE):
                    fetch(flat, ahead + line)
            b0, b1, b2 = _sums(finite[piece : piece + _PIECE], peak)
            s0 += float(b0)
            s1 += float(b1)
            s2 += float(b2)
    filled = _search(flat, origin, origin + vocab, maxima, widened, best, top, top_ids)
    return filled, peak, s0, s1, s2, nans, posinfs, neginfs


@_inner()
def _rows(turn: _Array, flat: _Array, stride: int, vocab: int, top_k: int, words: _Array, floats: _Array) -> None:
    """Row after row of `flat`, `stride` entries apart, until none is left to take."""
    rows = words.shape[0]
    keep = max(top_k, MASS_TOKENS)
    widened = np.empty(_BLOCK, np.int32)
    cleaned = np.empty(_BLOCK, np.int32)
    maxima = np.empty((vocab + _GROUP - 1) // _GROUP, np.int32)
    best = np.empty(keep, np.int32)
    top = np.empty(keep, np.float32)
    top_ids = np.empty(keep, np.int32)
    while True:
        row = take(turn)
        if row >= rows:
            return
        filled, peak, s0, s1, s2, nans, posinfs, neginfs = _row(
            flat, row * stride, vocab, widened, cleaned, maxima, best, top, top_ids
        )
        words[row, 0] = nans
        words[row, 1] = posinfs
        words[row, 2] = neginfs
        words[row, 10] = vocab
        empty = peak == -_INF
        log_total = 0.0 if empty else math.log(s0)
        p1, p2, mass = 0.0, 0.0, 0.0
        for k in range(keep):
            logprob = -math.inf
            if k < filled and top[k] == _INF:
                logprob = math.inf
            elif k < filled and top[k] > -_INF:
                # Not logit - logsumexp: that cancels for large logits.
                logprob = min(float(top[k]) - float(peak) - log_total, 0.0)
            if k < top_k:
                words[row, HEAD_WORDS + k] = top_ids[k] if k < filled else -1
                floats[row, HEAD_WORDS + top_k + k] = logprob
            p = math.exp(logprob)
            if k == 0:
                p1 = p
            if k == 1:
                p2 = p
            if k < MASS_TOKENS:
                mass += p
        floats[row, 6] = top[0] if filled > 0 else -_INF
        if posinfs > 0 or empty:
            floats[row, 3] = math.inf if posinfs > 0 else -math.inf
            for field in (4, 5, 7, 8, 9):
                floats[row, field] = math.nan
            continue
        # ln p = ln(2) (u - log2(s0)), so H = ln(2) (log2(s0) - E[u]), and the variance of ln p is ln(2)^2 that of u.
        mean = s1 / s0
        floats[row, 3] = peak + log_total
        floats[row, 4] = max(log_total - mean * _LN2, 0.0)
        floats[row, 5] = max(s2 / s0 - mean * mean, 0.0) * _LN2 * _LN2
        floats[row, 7] = p1
        floats[row, 8] = p1 - p2
        floats[row, 9] = min(mass, 1.0)


def _task(address: Any) -> None:
    task = numba.carray(address, 9, np.int64)
    rows, vocab, top_k, is_half = task[1], task[2], task[3], task[4]
    logits, stride, output, width = task[5], task[6], task[7], task[8]
    words = numba.carray(pointer(output), (rows, width), np.int32)
    floats = numba.carray(pointer(output), (rows, width), np.float32)
    entries = (rows - 1) * stride + vocab
    if is_half:
        _rows(task, numba.carray(pointer(logits), entries, np.int16), stride, vocab, top_k, words, floats)
    else:
        _rows(task, numba.carray(pointer(logits), entries, np.int32), stride, vocab, top_k, words, floats)


@functools.cache
def compiled_task() -> Any:
    """See :func:`compiled`. Any number of threads may run one task together, each returning when no row is left.

    A task is nine int64:

    0. the row to take next, initially 0;
    1. rows, at least 1;
    2. vocab, at least 1;
    3. top_k, at least 1;
    4. 1 where the logits are bfloat16, 0 where they are float32;
    5. the address of the logits, each row contiguous;
    6. entries from one of its rows to the next;
    7. the address of the output, the words of :class:`corevital.kernels.stats.TokenStats`;
    8. words from one of its rows to the next.
    """
    return compiled(_task)
