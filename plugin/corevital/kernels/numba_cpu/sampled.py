"""The compiled half of :func:`corevital.kernels.numba_cpu.write_sampled`."""

from __future__ import annotations

import functools
from typing import Any, Final

import numba
import numpy as np

from corevital.kernels.numba_cpu.intrinsics import compiled, pointer

__all__ = ["compiled_lookup"]

_HEAD: Final = 9  # entries of a task before its tokens


def _lookup(address: Any) -> None:
    head = numba.carray(address, _HEAD, np.int64)
    rows, vocab, is_half, logits, pitch = head[0], head[1], head[2], head[3], head[4]
    tokens = numba.carray(address, _HEAD + rows, np.int64)[_HEAD:]
    at = numba.carray(pointer(head[5]), rows, np.int64)
    likeliest = numba.carray(pointer(head[6]), (rows, head[7]), np.int32)
    out = numba.carray(pointer(head[8]), (rows, 3), np.int32)
    for row in range(rows):
        out[row, 0] = tokens[row]
        first = (row if head[5] == 0 else at[row]) * pitch
        for column in range(1, 3):
            token = tokens[row] if column == 1 else np.int64(likeliest[row, 0])
            entry = first + min(max(token, 0), vocab - 1)
            if is_half:
                half = numba.carray(pointer(logits + 2 * entry), 1, np.int16)[0]
                out[row, column] = np.int32(half) << np.int32(16)
            else:
                out[row, column] = numba.carray(pointer(logits + 4 * entry), 1, np.int32)[0]


@functools.cache
def compiled_lookup() -> Any:
    """See :func:`compiled`. A task is nine int64, and a token for each row:

    0. rows;
    1. vocab, at least 1;
    2. 1 where the logits are bfloat16, 0 where they are float32;
    3. the address of the logits, each row contiguous;
    4. entries from one of their rows to the next;
    5. the address of the row of the logits that each row is, int64; 0: the same one;
    6. the address of the likeliest token of the first row, int32;
    7. words to that of the next row;
    8. the address of the output, three words for each row: the token, and the bits of the float32 of two logits.
    """
    return compiled(_lookup)
