"""What measuring takes of the device's and of pinned memory, and what it does where none is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from integration.gpu.calls import CALLS
from integration.gpu.engines import ENGINES, Batch
from integration.gpu.model import Model, billion
from integration.gpu.place import Place
from integration.gpu.records import Measuring
from integration.gpu.table import Goal, Report

from corevital.log import LOGGER_NAME
from corevital.steps import recorder
from corevital.steps.recorder import MOST_KEPT_BYTES

MIB = 1 << 20


class Held(NamedTuple):
    """Bytes of this process: tensors, what PyTorch keeps for them, pinned memory; and how often it took that."""

    tensors: int
    reserved: int
    pinned: int
    pinned_calls: int

    @classmethod
    def now(cls, place: Place) -> Held:
        """Zeros without a GPU."""
        if place.dry:
            return cls(0, 0, 0, 0)
        place.wait()
        pinned = torch.cuda.host_memory_stats()
        return cls(
            torch.cuda.memory_allocated(place.device),
            torch.cuda.memory_reserved(place.device),
            int(pinned["allocated_bytes.current"]),
            int(pinned["num_host_alloc"]),
        )

    def __sub__(self, other: Held) -> Held:
        return Held(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def pinned(place: Place, report: Report) -> None:
    """``cudaHostAlloc`` may wait for the device: none after the start, whatever the batch."""
    batches = place.size((3, 40, 200), (1, 2))
    for runner, make in CALLS.items():
        for share in (1, 2):
            with Measuring(place, max(batches)) as measuring, torch.inference_mode():
                before = Held.now(place)
                for rows in batches:
                    logits = torch.randn(rows, place.vocab, device=place.device)
                    call = make(place, rows, measuring.recorder, max(rows // share, 1))
                    for _ in range(place.size(100, 1)):
                        call(logits)
                taken = Held.now(place) - before
            name = f"{runner}, {'half of ' if share == 2 else ''}batches of {', '.join(map(str, batches))}"
            report.goal(f"{name}: pinned allocations", taken.pinned_calls, Goal("=", 0), f"{taken.pinned} bytes")
            report.check(f"{name}: rows lost", not measuring.lost, f"{measuring.lost}", "= 0")


def memory(place: Place, report: Report) -> None:
    """Bounded as documented, and flat however long an engine serves."""
    rows = place.size(256, 4)
    before = Held.now(place)
    with Measuring(place, rows) as measuring:
        taken, held = Held.now(place) - before, measuring.nbytes
    over = (taken.tensors - held) / MIB
    report.goal("taken of the device at the start beyond what is logged", over, Goal("<=", 1, " MiB"), _mib(held))
    report.goal("pinned, against what is held of the device", taken.pinned / held, Goal("<=", 1.25), _mib(taken.pinned))
    for runner in ENGINES:
        most = held + MOST_KEPT_BYTES
        plain, ours = (_peak(place, runner, rows, measured) for measured in (0, rows))
        report.goal(f"{runner} x {rows}: more at the peak", (ours - plain) / MIB, Goal("<=", round(most / MIB), " MiB"))
    for runner in ENGINES:
        _flat(place, report, runner)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


def _peak(place: Place, runner: str, rows: int, measured: int) -> int:
    """Most bytes of tensors while an engine serves; without the plugin where nobody is measured."""
    if place.dry:
        return 0
    with Measuring(place, rows) as measuring, torch.inference_mode():
        engine = ENGINES[runner](
            place, Model(place, rows), Batch(rows, measured), measuring.recorder if measured else None
        )
        base = torch.cuda.memory_allocated(place.device) - (measuring.nbytes if measured else 0)
        torch.cuda.reset_peak_memory_stats(place.device)
        for _ in range(60):
            engine.step()
        place.wait()
        return torch.cuda.max_memory_allocated(place.device) - base


def _flat(place: Place, report: Report, runner: str) -> None:
    rows, steps = place.size(32, 2), place.size(10_000, 5)
    with Measuring(place, rows) as measuring, torch.inference_mode():
        engine = ENGINES[runner](place, billion(place, rows), Batch(rows, rows), measuring.recorder)
        start = time.perf_counter()
        for _ in range(steps // 5):
            engine.step()
        before = Held.now(place)
        for _ in range(steps - steps // 5):
            engine.step()
        grown, each = Held.now(place) - before, (time.perf_counter() - start) / steps
        name = f"{runner} x {rows}, {steps} steps of {each * 1e3:.2f} ms"
        report.goal(f"{name}: tensors grown", abs(grown.tensors) / MIB, Goal("<=", 1, " MiB"))
        report.goal(f"{name}: reserved grown", grown.reserved / MIB, Goal("<=", 0, " MiB"))
        report.goal(f"{name}: pinned grown", grown.pinned / MIB, Goal("<=", 0, " MiB"))
        report.check(f"{name}: rows lost", not measuring.lost, f"{measuring.lost}", "= 0")


class Lines(logging.Handler):
    """Our lines in the log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.lines.append(record.getMessage())


def oom(place: Place, report: Report) -> None:
    """On a full device what was taken at the start suffices; where it does not, measuring pauses and serving continues.

    In a dry run an error of the same kind stands in for a real one.
    """
    rows, usual, lines = place.size(64, 1), place.size(20, 2), Lines()
    logging.getLogger(LOGGER_NAME).addHandler(lines)
    logits = torch.randn(rows, place.vocab, device=place.device)
    half = logits.half()  # another processor's, which needs a copy
    with Measuring(place, rows) as measuring, torch.inference_mode():
        tables, tries = measuring.recorder._tables, 0
        observe: Callable[..., object] = tables.measure

        def counted(given: torch.Tensor, *others: object) -> object:
            nonlocal tries
            tries += 1
            if place.dry and given.dtype is torch.float16:
                raise torch.OutOfMemoryError("out of memory (a stand-in)")
            return observe(given, *others)

        tables.measure = counted  # type: ignore[method-assign, assignment]
        call = CALLS["V1"](place, rows, measuring.recorder)
        call(logits)
        blocks = [] if place.dry else fill(place)
        for _ in range(usual):
            call(logits)
        is_going = not lines.lines and tries == 1 + usual
        report.check(
            "a full device, usual logits: measured on", is_going, f"{tries} of {1 + usual} steps, {lines.lines[:1]}"
        )
        call(half)
        spent = [call(half) for _ in range(100)]
        report.check(
            "no memory for a copy: tried once in 30 s", tries == 2 + usual, f"{tries - usual - 1} tries in 101 steps"
        )
        warned = [line for line in lines.lines if "out of memory" in line]
        report.check("no memory: one warning", len(warned) == 1, f"{len(warned)}: {warned[:1]}")
        report.goal("a step while it rests", sorted(spent)[50] * 1e6, Goal("<", 60, " us"))
        blocks.clear()
        if not place.dry:
            torch.cuda.empty_cache()
        recorder.time = SimpleNamespace(monotonic=lambda: time.monotonic() + 31)  # type: ignore[assignment]
        call(logits)
        report.check("30 s later: measured again", tries == 3 + usual)
        place.wait()


def fill(place: Place) -> list[torch.Tensor]:
    """All of the device's memory, to the last half mebibyte."""
    blocks, size = [], 8 << 30
    while size >= MIB // 2:
        try:
            blocks.append(torch.empty(size, dtype=torch.uint8, device=place.device))
        except torch.OutOfMemoryError:
            size //= 2
    return blocks
