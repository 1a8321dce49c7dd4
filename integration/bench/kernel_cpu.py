"""Time the CPU backends of the kernel against PyTorch on the same logits.

    python integration/bench/kernel_cpu.py [--threads 1] [--seconds 2]

What is compared takes turns, so that a busy machine slows all alike. The columns:

- ``torch.sum``: one read of the logits, the floor.
- ``naive torch``: entropy by softmax and log_softmax, and topk: what one would write first, and fewer statistics.
- ``torch`` and ``numba``: the backends, everything that ``token_stats`` returns; the last column from bfloat16.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from corevital.kernels import available_backends, token_stats, warm_up

SIZES = [(1, 32000), (8, 128256), (64, 32000), (64, 151936)]


def naive(logits: torch.Tensor) -> None:
    logprobs = logits.log_softmax(-1)
    _ = -(logits.softmax(-1) * logprobs).sum(-1)
    logprobs.topk(20, dim=-1)


def timed(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every call, from rounds in which each gets one turn."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def spread(times: list[float]) -> str:
    fifths = statistics.quantiles(times, n=5)
    return f"{fifths[0]:.3g} / {statistics.median(times):.3g} / {fifths[3]:.3g}"


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the CPU backends of the kernel.")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, which the kernel shares")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each size")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backends = [name for name in ("torch", "numba") if name in available_backends("cpu")]
    for backend in backends:
        warm_up(1000, backend=backend)

    print(f"{processor()}, {options.threads} thread(s), torch {torch.__version__}; ms, p20 / p50 / p80")
    header = ["rows x vocab", "torch.sum", "naive torch", *backends, f"{backends[-1]}, bf16"]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for rows, vocab in SIZES:
        logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)) * 3
        half = logits.bfloat16()
        calls: dict[str, Callable[[], object]] = {
            "torch.sum": lambda x=logits: x.sum(-1),
            "naive torch": lambda x=logits: naive(x),
        }
        for backend in backends:
            calls[backend] = lambda x=logits, b=backend: token_stats(x, backend=b)
        calls["bf16"] = lambda x=half: token_stats(x, backend=backends[-1])
        cells = [spread(times) for times in timed(calls, options.seconds).values()]
        print(f"| {rows} x {vocab} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
