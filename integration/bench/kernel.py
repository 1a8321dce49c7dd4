"""Time the kernel's backends against PyTorch on the same logits, over batch sizes and vocabularies.

    python -m integration.bench.kernel [--device cpu] [--threads 1] [--seconds 1] [--rows 1 8 64] [--vocab 32000 128256]
    python -m integration.bench.kernel --reference FILE

Columns are timed in turns, so that a busy machine slows all of them equally. The columns:

- ``torch.sum``: one read of the logits, the lower bound.
- ``naive torch``: entropy by softmax and log_softmax, and topk: a direct composition, with fewer statistics.
- ``logprobs=20``: what vLLM's model runner V1 computes for a request with that many log-probabilities.
- a backend: everything that ``token_stats`` returns; the last column is the best of them from bfloat16.
- ``float32 copy``, on a GPU: bfloat16 logits widened, as Model Runner V2 does before it shows logits to a plugin.

On a GPU, times are between CUDA events, over enough copies of the logits to exceed its cache, which all columns share.
The device is kept busy while calls are queued, so that the time of a small call is not the host's. ``--reference`` adds
a module's ``stats_seq(logits, bits, tokens, out, out_bits)`` to the columns, and the median ratio of ``numba`` to it.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from integration.bench.machine import processor, spread, versions

from corevital.kernels import available_backends, token_stats, warm_up

ROWS = (1, 8, 64, 256)
VOCABULARIES = (2048, 32000, 128256, 151936, 262144)
CACHE_BYTES = 256 << 20  # more than any GPU caches
QUEUEING_CYCLES = 10_000_000  # milliseconds in which a GPU waits while the host queues ten calls
BIGGEST = 64 << 20  # logits on a CPU: beyond it a round takes seconds

Call = Callable[[torch.Tensor], object]


def naive(logits: torch.Tensor) -> None:
    logprobs = logits.log_softmax(-1)
    _ = -(logits.softmax(-1) * logprobs).sum(-1)
    logprobs.topk(20, dim=-1)


def logprobs20(logits: torch.Tensor) -> None:
    """``Sampler.compute_logprobs`` and ``gather_logprobs`` of ``vllm.v1.sample.sampler``."""
    logprobs = logits.log_softmax(-1, dtype=torch.float32)
    logprobs.topk(20, dim=-1)
    sampled = logprobs.gather(-1, torch.zeros(len(logits), 1, dtype=torch.int64, device=logits.device))
    (logprobs >= sampled).sum(-1)


def reference(file: Path) -> Call:
    spec = importlib.util.spec_from_file_location("reference", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(logits: torch.Tensor) -> None:
        x = logits.numpy()
        out = np.empty((len(x), 64), np.float32)
        module.stats_seq(x, x.view(np.int32), np.zeros(len(x), np.int32), out, out.view(np.int32))

    return call


def on_cpu(call: Call, copies: Iterator[torch.Tensor]) -> Callable[[], float]:
    """Milliseconds of a call: the median of a burst, so that the previous column's caches do not matter."""
    logits = next(copies)

    def timed() -> float:
        times: list[float] = []
        while len(times) < 3 or (len(times) < 50 and sum(times) < 5):
            start = time.perf_counter()
            call(logits)
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)

    return timed


def on_gpu(call: Call, copies: Iterator[torch.Tensor], calls: int = 10) -> Callable[[], float]:
    """Milliseconds of a call on the device, out of several queued one after the other."""

    def timed() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(QUEUEING_CYCLES)
        start.record()
        for _ in range(calls):
            call(next(copies))
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls

    return timed


def rounds(timers: dict[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every call, from rounds in which each gets one turn."""
    for timer in timers.values():
        timer()
    times: dict[str, list[float]] = {name: [] for name in timers}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, timer in timers.items():
            times[name].append(timer())
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the kernel's backends.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, which the kernel shares")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each size")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--vocab", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--reference", type=Path, metavar="FILE", help="another CPU kernel to compare with")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    backends = [name for name in ("torch", "numba", "triton") if name in available_backends(device)]
    for backend in backends:
        warm_up(1000, device=device, backend=backend)

    calls: dict[str, Call] = {"torch.sum": lambda x: x.sum(-1), "naive torch": naive, "logprobs=20": logprobs20}
    for backend in backends:
        calls[backend] = lambda x, b=backend: token_stats(x, backend=b)
    if options.reference:
        calls["reference"] = reference(options.reference)
    best = backends[-1]
    halves: dict[str, Call] = {f"{best}, bf16": lambda x: token_stats(x, backend=best)}
    if device.type == "cuda":
        halves["float32 copy"] = lambda x: x.float()

    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{processor()}, {options.threads} thread(s)"
    print(f"{where}; {versions('torch', 'numba', 'triton')}; ms, p20 / p50 / p80")
    header = ["rows x vocab", *calls, *halves, *(["numba / reference"] if options.reference else [])]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for rows, vocab in itertools.product(options.rows, options.vocab):
        if device.type == "cpu" and rows * vocab > BIGGEST:
            continue
        logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)).to(device) * 3
        copies = 2 * CACHE_BYTES // logits.nbytes + 1 if device.type == "cuda" else 1
        timer = on_gpu if device.type == "cuda" else on_cpu
        inputs = itertools.cycle([logits.clone() for _ in range(copies)])
        narrow = itertools.cycle([logits.bfloat16() for _ in range(copies)])
        timers = {name: timer(call, inputs) for name, call in calls.items()}
        timers |= {name: timer(call, narrow) for name, call in halves.items()}
        times = rounds(timers, options.seconds)
        cells = [spread(column) for column in times.values()]
        if options.reference:
            cells.append(f"{statistics.median(map(float.__truediv__, times['numba'], times['reference'])):.2f}")
        print(f"| {rows} x {vocab} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
