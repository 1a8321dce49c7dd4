"""Times: of the kernels on the device, of an adapter's calls on the host, and of both beside ``logprobs=20``."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from integration.bench.kernel import CACHE_BYTES, on_cpu, on_gpu, rounds
from integration.gpu.calls import CALLS
from integration.gpu.place import Place
from integration.gpu.records import Measuring
from integration.gpu.table import Goal, Report

from corevital.kernels import token_stats

KERNEL_GOALS = {(256, 151936): 1.25, (32, 128256): 1.6}
KERNEL_FIGURES = [*itertools.product((1, 8, 64, 256), (32000, 50257, 128256)), (1, 151936), (64, 151936)]
_COLD_BYTES = 48 << 20
"""Written between two steps: more than the last cache of a core's share."""


def copies_of(place: Place, rows: int, vocab: int) -> Iterator[torch.Tensor]:
    """The same logits again and again, in more memory than a GPU caches."""
    logits = torch.randn(rows, vocab, device=place.device) * 3
    count = 1 if place.dry else 2 * CACHE_BYTES // logits.nbytes + 1
    return itertools.cycle([logits.clone() for _ in range(count)])


def kernel(place: Place, report: Report) -> None:
    """A whole ``token_stats`` against one read of the logits, ``torch.sum``."""
    goals: dict[tuple[int, int], float | None] = {**KERNEL_GOALS, **dict.fromkeys(KERNEL_FIGURES)}
    sizes: dict[tuple[int, int], float | None] = place.size(goals, {(1, 300): 1.25})
    calls: dict[str, Callable[[torch.Tensor], object]] = {
        "read": lambda logits: logits.sum(-1),
        "kernel": lambda logits: token_stats(logits, top_k=20, backend="triton"),
    }
    for (rows, vocab), goal in sizes.items():
        inputs = copies_of(place, rows, vocab)
        timer = place.size(on_gpu, on_cpu)
        times = rounds({name: timer(call, inputs) for name, call in calls.items()}, place.size(0.6, 0.01))
        ratio = statistics.median(map(float.__truediv__, times["kernel"], times["read"]))
        took = ", ".join(f"{name} {statistics.median(column) * 1e3:.1f} us" for name, column in times.items())
        name = f"{rows} x {vocab} float32, to one read"
        if goal is None:
            report.figure(name, f"{ratio:.3g}, {took}")
        else:
            report.goal(name, ratio, Goal("<=", goal), took)


def logprobs20(logits: torch.Tensor) -> object:
    """What vLLM's V1 sampler adds for ``logprobs=20``, and its copies to the host."""
    logprobs = logits.log_softmax(-1, dtype=torch.float32)
    values, ids = logprobs.topk(20, dim=-1)
    tokens = ids[:, :1]
    sampled = logprobs.gather(-1, tokens)
    ranks = (logprobs >= sampled).sum(-1)
    ids, values = torch.cat((tokens, ids), dim=1).to(torch.int32), torch.cat((sampled, values), dim=1)
    return [column.to("cpu", non_blocking=True) for column in (ids, values, ranks)]


def logprobs(place: Place, report: Report) -> None:
    """Of what ``logprobs=20`` adds to a step on the device, the share that measuring adds; the host's beside it."""
    for rows in place.size((1, 8, 64, 256), (1,)):
        with Measuring(place, rows, sends=False) as measuring, torch.inference_mode():
            ours, inputs = CALLS["V1"](place, rows, measuring.recorder), copies_of(place, rows, place.vocab)
            timer = place.size(on_gpu, on_cpu)
            timers = {"ours": timer(ours, inputs), "logprobs": timer(logprobs20, inputs)}
            times = rounds(timers, place.size(1.0, 0.01))
            place.wait()
            host = [_host_us(place, call, next(inputs)) for call in (ours, logprobs20)]
        share = statistics.median(map(float.__truediv__, times["ours"], times["logprobs"]))
        took = " of ".join(f"{statistics.median(column) * 1e3:.0f}" for column in times.values())
        report.goal(f"batch {rows}, share of the device's time", share, Goal("<=", 0.2), f"{took} us")
        report.figure(f"batch {rows}, host", f"{host[0]:.0f} of {host[1]:.0f} us")
        report.check(f"batch {rows}, rows lost", not measuring.lost, f"{measuring.lost}", "= 0")


def _host_us(place: Place, call: Callable[[torch.Tensor], object], logits: torch.Tensor) -> float:
    spent = []
    for _ in range(place.size(50, 3)):
        start = time.perf_counter()
        call(logits)
        spent.append((time.perf_counter() - start) * 1e6)
        place.wait()
    return statistics.median(spent)


def host(place: Place, report: Report) -> None:
    """What a step takes of the engine's thread, with hot and with cold caches; and what it queues."""
    junk = np.ones(place.size(_COLD_BYTES, 1 << 10), np.uint8)
    for runner, make in CALLS.items():
        for rows in place.size((1, 64, 256), (1,)):
            logits = torch.randn(rows, place.vocab, device=place.device)
            with Measuring(place, rows) as measuring, torch.inference_mode():
                call = make(place, rows, measuring.recorder)
                hot: list[float] = []
                for _ in range(place.size(5, 1)):  # with pauses, or the frame thread would fall behind
                    hot += [call(logits) for _ in range(place.size(60, 3))][place.size(10, 1) :]
                    place.wait()
                    time.sleep(place.size(0.35, 0))
                cold = []
                for _ in range(place.size(60, 2)):
                    place.wait()
                    junk += 1
                    cold.append(call(logits))
                name = f"{runner} x {rows}"
                report.goal(f"{name}: host, hot", statistics.median(hot) * 1e6, Goal("<", 60, " us"))
                report.goal(f"{name}: host, cold", statistics.median(cold) * 1e6, Goal("<", 150, " us"))
                _queued(place, report, name, lambda: call(logits))  # noqa: B023 - called here
                report.check(f"{name}: rows lost", not measuring.lost, f"{measuring.lost}", "= 0")


def _queued(place: Place, report: Report, name: str, step: Callable[[], object], steps: int = 20) -> None:
    if place.dry:
        report.not_run(
            f"{name}: kernels and copies a step", "no GPU; integration/tests/engine/test_gpu_tables.py counts them"
        )
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        place.wait()
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = sum("memcpy" in event.name.lower() for event in events)
    names = ", ".join(sorted({event.name.split("(")[0][:40] for event in events}))
    if len(events) == copies:
        report.check(f"{name}: the profiler sees kernels", False, "none; it may lack the right to, see CUPTI")
        return
    took = sum(event.self_device_time_total for event in events) / steps
    report.goal(f"{name}: kernels a step", (len(events) - copies) / steps, Goal("<=", 3), f"{took:.0f} us; {names}")
    report.goal(f"{name}: copies a step", copies / steps, Goal("<=", 1))
