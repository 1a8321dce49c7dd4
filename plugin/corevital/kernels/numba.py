"""Statistics of logits on the CPU, compiled by numba: one read of the logits, no temporary of their size.

The threads are our own; numba's are left alone. Its OpenMP layer aborts a process forked after its first use, its
workqueue layer aborts when two threads use it at once, and the engine around us may do either.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import torch

from corevital.kernels.numba_rows import stats_of_rows
from corevital.kernels.stats import MASS_TOKENS, TokenStats

__all__ = ["supports", "token_stats", "warm_up"]

_LOGITS_PER_THREAD: Final = 1 << 19  # waking a thread costs about as much as a tenth of these
_MAX_THREADS: Final = 8  # by then memory is the limit


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MAX_THREADS - 1, thread_name_prefix="corevital-kernel")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _threads(rows: int, vocab: int) -> int:
    """How many threads are worth their waking, of those that torch and the scheduler leave us."""
    by_work = min(rows, rows * vocab // _LOGITS_PER_THREAD, _MAX_THREADS)
    if by_work < 2:
        return 1
    # The affinity of this very thread: an engine that pins its threads to a core each gains nothing from more.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(by_work, torch.get_num_threads(), cores)


def supports(device: torch.device) -> bool:
    """Whether logits on this device can be read: on the CPU only."""
    return device.type == "cpu"


def warm_up(vocab_size: int, device: torch.device) -> None:
    """Compile for float32 and for bfloat16: seconds the first time, less with numba's cache on disk."""
    for dtype in (torch.float32, torch.bfloat16):
        token_stats(torch.zeros(1, vocab_size, dtype=dtype, device=device), MASS_TOKENS)


def token_stats(logits: torch.Tensor, top_k: int) -> TokenStats:
    """Statistics of each row; see :func:`corevital.kernels.token_stats`.

    Args:
        logits: ``[rows, vocab]``, float32 or bfloat16, on the CPU, without gradient.
        top_k: at least 1.
    """
    rows, vocab = logits.shape
    # Allocated by numpy and wrapped afterwards, which takes half as long as the other way round.
    values = np.empty((7, rows), np.float32)
    counts = np.empty((3, rows), np.int32)
    ids = np.empty((rows, top_k), np.int32)
    logprobs = np.empty((rows, top_k), np.float32)
    if rows > 0:
        if vocab > 1 and logits.stride(1) != 1:
            logits = logits.contiguous()
        stride = logits.stride(0)
        bits = logits.view(torch.int32 if logits.dtype == torch.float32 else torch.int16)
        # One dimension over all rows and what lies between them: a slice of padded logits needs no copy.
        flat = bits.as_strided(((rows - 1) * stride + vocab,), (1,)).numpy()
        threads = _threads(rows, vocab)
        bounds = [rows * i // threads for i in range(threads + 1)]
        others = [
            _pool().submit(stats_of_rows, flat, stride, vocab, first, last, values, counts, ids, logprobs)
            for first, last in zip(bounds[1:-1], bounds[2:], strict=True)
        ]
        stats_of_rows(flat, stride, vocab, 0, bounds[1], values, counts, ids, logprobs)
        for other in others:
            other.result()
    wrap = torch.from_numpy
    return TokenStats(
        logsumexp=wrap(values[0]),
        entropy=wrap(values[1]),
        varentropy=wrap(values[2]),
        max_logit=wrap(values[3]),
        top1_prob=wrap(values[4]),
        margin=wrap(values[5]),
        topk_mass=wrap(values[6]),
        topk_ids=wrap(ids),
        topk_logprobs=wrap(logprobs),
        nan_count=wrap(counts[0]),
        posinf_count=wrap(counts[1]),
        neginf_count=wrap(counts[2]),
    )
