"""Statistics of logits on the CPU, compiled by numba: one read of the logits, no temporary of their size.

More than one thread means torch's own OpenMP team, which torch keeps awake between its operations and which an engine
may have bound to its cores. Threads besides those would compete with it. numba's cannot be used in an engine: their
OpenMP layer aborts a process that was forked after its first use, their workqueue layer one that uses it from two
threads at once.
"""

from __future__ import annotations

import ctypes
import functools
import os
from array import array
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from corevital.kernels.numba_cpu.rows import compiled_task
from corevital.kernels.numba_cpu.sampled import compiled_lookup
from corevital.kernels.stats import HEAD_WORDS, MASS_TOKENS, TokenStats

__all__ = ["supports", "token_stats", "warm_up", "write_sampled", "write_stats"]

_TEAM_LOGITS: Final = 1 << 18  # less takes some 0.1 ms: not worth waking a team that has gone to sleep


def supports(device: torch.device) -> bool:
    """Whether logits on this device can be read: on the CPU only."""
    return device.type == "cpu"


def warm_up(vocab_size: int, device: torch.device) -> None:
    """Compile, for every dtype at once: seconds the first time, less with numba's cache on disk."""
    token_stats(torch.zeros(1, vocab_size, device=device), MASS_TOKENS)
    _lookup()


def token_stats(logits: torch.Tensor, top_k: int, out: torch.Tensor | None = None) -> TokenStats:
    """Statistics of each row; see :func:`corevital.kernels.token_stats`.

    Args:
        logits: ``[rows, vocab]``, float32 or bfloat16, on the CPU, without gradient.
        top_k: at least 1.
        out: where the words go, or None.
    """
    rows, vocab = logits.shape
    # numpy allocates and torch wraps: half the time of torch doing both, and it counts beside a single row
    words = torch.from_numpy(np.empty((rows, HEAD_WORDS + 2 * top_k), np.int32)) if out is None else out
    if rows > 0:
        pitch, step = logits.stride()
        if vocab > 1 and step != 1:
            logits = logits.contiguous()  # rows may lie apart, as those of a slice of padded logits do
            pitch = vocab
        is_half = logits.dtype is torch.bfloat16
        write_stats(rows, vocab, is_half, logits.data_ptr(), pitch, top_k, words.data_ptr(), words.stride(0))
    return TokenStats(words)


def write_stats(
    rows: int, vocab: int, is_half: bool, logits: int, pitch: int, top_k: int, words: int, width: int
) -> None:
    """Write the words of :class:`TokenStats`.

    Args:
        rows: at least 1.
        vocab: at least 1.
        is_half: whether the logits are bfloat16; else they are float32.
        logits: their address.
        pitch: entries from one of their rows to the next.
        top_k: at least 1.
        words: the address of the first row's.
        width: words from one row's to the next.
    """
    task = array("q", (0, rows, vocab, top_k, is_half, logits, pitch, words, width))
    run = _runners()[rows > 1 and rows * vocab >= _TEAM_LOGITS and torch.get_num_threads() > 1]
    run(task.buffer_info()[0])


def write_sampled(
    tokens: list[int], vocab: int, is_half: bool, logits: int, pitch: int, at: int, likeliest: int, width: int, out: int
) -> None:
    """Write for each row its token and, as the bits of float32, the logits of that and of another one.

    Args:
        tokens: ``[rows]``; an id outside the vocabulary reads the nearest id's logit.
        vocab: as for :func:`write_stats`, and so are the next three.
        is_half: likewise.
        logits: likewise.
        pitch: likewise.
        at: the address of int64, which rows of the logits the rows are; 0: the first ones.
        likeliest: the address of the first row's other token, int32.
        width: words from it to that of the next row.
        out: the address of the output, three words for each row.
    """
    task = array("q", (len(tokens), vocab, is_half, logits, pitch, at, likeliest, width, out, *tokens))
    _lookup()(task.buffer_info()[0])


_Runner = Callable[[int], object]
"""Takes the address of a task."""


@functools.cache
def _runners() -> tuple[_Runner, _Runner]:
    """What runs the task at an address: on this thread, and on torch's team (where it has none, on this thread)."""
    address = compiled_task().address
    # Calls through ctypes release the GIL.
    alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
    if _forked or "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return alone, alone
    try:
        # What `#pragma omp parallel` compiles to, in libgomp and in the OpenMP runtimes that stand in for it:
        # void GOMP_parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags).
        parallel = ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        return alone, alone
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    # 0 threads: as many as torch has set. Another number would resize the team, and unbind threads bound to cores.
    return alone, lambda task: parallel(address, task, 0, 0)


@functools.cache
def _lookup() -> _Runner:
    # Short, a few cache lines a row: PYFUNCTYPE keeps the GIL, which might not come back at once.
    return ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(compiled_lookup().address)


_forked = False


def _after_fork() -> None:
    # The team's threads are gone, but the OpenMP runtime would still wait for them.
    global _forked  # noqa: PLW0603
    _forked = True
    _runners.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
