"""What an engine would notice: a call that waits, a thread on another device, a record that is lost or wrong."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from integration.gpu.calls import CALLS
from integration.gpu.engines import ENGINES, Batch
from integration.gpu.model import Model
from integration.gpu.place import Place, has_context, nothing_synchronises
from integration.gpu.records import Measuring, Sink, differences
from integration.gpu.table import Goal, Report

from corevital.steps import gpu_tables

_HALF_A_SECOND = 1_000_000_000
"""Cycles; between .5 and 1 s by the clock of the GPU."""


def sync(place: Place, report: Report) -> None:
    """No call of a step waits for the device: PyTorch would raise an error, and a busy device would show it."""
    rows = place.size(16, 2)
    logits = torch.randn(rows, place.vocab, device=place.device)
    for runner, make in CALLS.items():
        for measured in (rows, rows // 2):
            name = f"{runner}, {measured} of {rows} rows"
            with Measuring(place, rows, sends=False) as measuring, torch.inference_mode():
                call = make(place, rows, measuring.recorder, measured)
                for _ in range(place.size(3, 2)):
                    call(logits)
                place.wait()
                error = ""
                try:
                    with nothing_synchronises(place):
                        for _ in range(place.size(5, 1)):
                            call(logits)
                except RuntimeError as raised:
                    error = str(raised).splitlines()[0]
                report.goal(f"{name}: calls that synchronise", float(bool(error)), Goal("=", 0), error[:200])
                place.wait()
                place.keep_busy(_HALF_A_SECOND)
                slowest = max(call(logits) for _ in range(place.size(5, 1)))
                report.goal(f"{name}: slowest call, device busy for .5 s", slowest * 1e3, Goal("<", 20, " ms"))
                place.wait()


def thread(place: Place, report: Report) -> None:
    """The frame thread works on the engine's device, and takes no memory on the first one."""
    if place.dry:
        report.not_run("the frame thread's device", "no GPU")
        return
    count = torch.cuda.device_count()
    where = place._replace(device=torch.device("cuda", count - 1))
    torch.cuda.set_device(where.device)  # as an engine's worker does
    rows, seen = 4, []
    with Measuring(where, rows) as measuring:
        send, logits = measuring.sink.send, torch.randn(rows, where.vocab, device=where.device)

        def note(*arguments: Any, **tables: Any) -> None:
            seen.append((threading.current_thread().name, torch.cuda.current_device()))
            send(*arguments, **tables)

        measuring.sink.send = note  # type: ignore[method-assign]
        call = CALLS["V2"](where, rows, measuring.recorder)
        for _ in range(5):
            call(logits)
        where.wait()
        time.sleep(1)
    wanted = {("corevital-frames", where.device.index)}
    report.check("thread and device of the sender", set(seen) == wanted, str(sorted(set(seen))), str(sorted(wanted)))
    if torch.version.hip:
        report.not_run("no memory on the first of several GPUs", "only CUDA's driver is asked")
    elif count > 1:
        report.check("no memory on the first of several GPUs", not has_context(0))
    else:
        report.not_run("no memory on the first of several GPUs", "there is one")


@contextlib.contextmanager
def late_copies(place: Place) -> Iterator[None]:
    """Each copy to the host is milliseconds late; without a device the delay is simulated."""
    queue, arrived = gpu_tables.GpuTable.queue, gpu_tables.GpuTable.arrived
    looks: dict[int, int] = {}

    def queue_late(table: gpu_tables.GpuTable) -> None:
        place.keep_busy(2_000_000)
        queue(table)

    def arrived_late(table: gpu_tables.GpuTable) -> bool:
        looks[id(table)] = looks.get(id(table), 0) + 1
        return looks[id(table)] > 2 and bool(arrived.__get__(table))

    gpu_tables.GpuTable.queue = queue_late  # type: ignore[method-assign, assignment]
    if place.dry:
        gpu_tables.GpuTable.arrived = property(arrived_late)  # type: ignore[assignment]
    try:
        yield
    finally:
        gpu_tables.GpuTable.queue = queue  # type: ignore[method-assign]
        gpu_tables.GpuTable.arrived = arrived  # type: ignore[method-assign]


def loop(place: Place, report: Report) -> None:
    """Hundreds of steps on the engine's own stream: each record arrives once, and is of the right row."""
    rows, steps = place.size(24, 2), place.size(400, 4)
    cases = {
        "V1": ("V1", Batch(rows, rows, top_k=50)),
        "V1, half measured": ("V1", Batch(rows, rows // 2, top_k=50)),
        "V2": ("V2", Batch(rows, rows, top_k=50, ahead=8)),
        "V2, half measured": ("V2", Batch(rows, rows // 2, top_k=50, ahead=8)),
        "V2, two drafts": ("V2", Batch(rows // 2, rows // 2, top_k=50, drafts=2, ahead=8)),
    }
    for name, (runner, batch) in cases.items():
        _loop(place, report, name, runner, batch, steps)


def _loop(place: Place, report: Report, name: str, runner: str, batch: Batch, steps: int) -> None:
    logits = batch.rows * (1 + batch.drafts)
    sink = Sink()
    stream = contextlib.nullcontext() if place.dry else torch.cuda.stream(torch.cuda.Stream(place.device))
    with Measuring(place, logits, sink) as measuring, late_copies(place), stream, torch.inference_mode():
        engine = ENGINES[runner](place, Model(place, logits), batch, measuring.recorder)
        for _ in range(steps):
            engine.step(with_truth=True)
            _write_over_freed_memory(place, logits)
        if runner == "V2":  # V1 learns of the last step's tokens in the next one only
            engine.adapter.apply_staged_writes()
        place.wait()
        time.sleep(place.size(1.2, 0.6))
        lost = measuring.lost + sink.dropped
    wanted = engine.wanted()
    found = differences(wanted, sink)
    is_right = not found.number and not lost and len(wanted) > steps // 2
    report.check(f"{name}: of {len(wanted)} records", is_right, f"{found}, dropped {lost}", "0 each")


def _write_over_freed_memory(place: Place, rows: int) -> None:
    for width in (57, place.vocab):
        torch.full((rows, width), -1, dtype=torch.int32, device=place.device)
