"""Statistics of logits on the CPU, compiled by numba: one read of the logits, nothing else of their size.

A row goes through in blocks that stay in the first-level cache. Per block: the maximum of every group of logits, which
gives the block's peak and the few groups worth searching for the top k; then the sums that the statistics need, kept
relative to the row's peak so far (online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867) and, beside its
Σe, with the sums Σe·u and Σe·u², from which entropy and varentropy follow. e = 2^u, so u is in bits.

Threads are our own and few; numba's are left alone. Its OpenMP layer aborts a process that was forked after its first
use and its workqueue layer aborts when two threads use it at once, and an engine that hosts us may do either.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar, cast

import numba  # type: ignore[import-untyped]
import numba.extending  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corevital.kernels.stats import MASS_TOKENS, TokenStats

__all__ = ["supports", "token_stats", "warm_up"]

_Array = npt.NDArray[Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])

_BLOCK: Final = 1024  # logits: 4 KB of float32, so that the passes over a block after the first read the L1 cache
_GROUP: Final = 64  # logits: one comparison decides whether any of them can be among the top k
_LOGITS_PER_THREAD: Final = 1 << 19  # waking a thread costs about as much as a tenth of this many logits

_F = np.float32
_I = np.int32
_LN2: Final = math.log(2.0)
_LOG2E: Final = 1.0 / _LN2
_LOG2E_32: Final = _F(_LOG2E)
_LOWEST: Final = _F(-126.0)  # 2^u is a normal float32 from here on; what is below adds nothing to sums of at least 1
_BELOW_ONE: Final = np.nextafter(_F(1), _F(0))
# IEEE 754 float32: all but the sign; infinity, above whose magnitude there are only NaNs; -infinity.
_MAGNITUDE: Final = _I(0x7FFFFFFF)
_INF_BITS: Final = _I(0x7F800000)
_NEGINF_BITS: Final = _I(-0x00800000)
_LEAST: Final = _I(-0x80000000)

# numba has no vector exp2, hence a polynomial: 2^f on [0, 1] interpolated at the zeros of the Chebyshev polynomial T6,
# stretched so that the first zero lies at f = 0. There 2^0 is then exactly 1 (a sure token has exactly entropy 0), and
# the relative error is below 1e-7, float32's own.
_ZEROS = np.cos((2 * np.arange(6) + 1) * np.pi / 12)
_NODES = (_ZEROS + _ZEROS[0]) / (1 + _ZEROS[0])
_C1, _C2, _C3, _C4, _C5 = (_F(c) for c in np.polynomial.polynomial.polyfit(_NODES, np.exp2(_NODES), 5)[1:])

# 'nnan' and 'ninf' are left out: NaN and infinities must survive.
_FAST: Final = frozenset({"reassoc", "contract", "nsz", "arcp"})


def _inner(**options: Any) -> Callable[[_Function], _Function]:
    """Compile a function that only compiled functions call."""
    return cast(Callable[[_Function], _Function], numba.njit(nogil=True, boundscheck=False, **options))


def _entry(function: _Function) -> _Function:
    """Compile a function that Python calls, and keep the result on disk where there is a place for it."""
    try:
        return cast(_Function, numba.njit(nogil=True, boundscheck=False, cache=True, fastmath=set(_FAST))(function))
    except RuntimeError:  # no directory can be written to: compile once a process
        return _inner(fastmath=set(_FAST))(function)


def _as_float(bits: Any) -> Any:
    """The float32 of these 32 bits."""
    raise NotImplementedError("compiled code only")


@cast(Callable[[_Function], Any], numba.extending.intrinsic)
def _bitcast(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(numba.types.float32))

    return numba.types.float32(numba.types.int32), generate
