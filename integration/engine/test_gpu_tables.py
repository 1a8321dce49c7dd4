"""Tables of a GPU, in Triton's interpreter: what they hold, what a step queues, and that it takes no new memory.

The interpreter is chosen for a process as a whole, before Triton is imported: the tests run in one of their own.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integration.engine.conftest import INTERPRETED
from torch.utils._python_dispatch import TorchDispatchMode

from corevital.engines import emitter as emitters
from corevital.engines.device_tables import DeviceTables
from corevital.engines.emitter import Emitter
from corevital.engines.occupants import Occupants
from corevital.engines.steps import Kept, Step
from corevital.frames.record import REJECTED, ROW
from corevital.frames.stamp import Stamp

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own, with TRITON_INTERPRET=1")
ROOT = Path(__file__).parents[2]
VIEWS = {"slice", "select", "view", "detach", "alias", "as_strided", "expand", "unsqueeze", "narrow"}
VOCAB, SLOTS, KNOWN = 300, 4, 40


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_tritons_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-W", "ignore::RuntimeWarning"],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr
    assert "10 passed" in done.stdout, done.stdout


class Counting(TorchDispatchMode):
    """Operations of torch that do something: views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def gpu_tables(rows: int = 16) -> Any:
    from corevital.engines.gpu_tables import GpuTables

    return GpuTables(torch.device("cpu"), rows)


def occupants(rows: int) -> Occupants:
    return Occupants.of([Stamp("0" * 32, key) for key in range(rows)], [1.0] * rows)


def engine_step(step: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Kept]:
    """Logits, their slots and positions, and what the engine knows by the next step."""
    generator = torch.Generator().manual_seed(step)
    logits = torch.randn(rows, VOCAB, generator=generator) * 4
    slots = torch.randperm(SLOTS, generator=generator).repeat_interleave(-(-rows // SLOTS))[:rows].to(torch.int32)
    positions = torch.randint(0, KNOWN - 2, (rows,), generator=generator)
    known = torch.randint(0, VOCAB, (SLOTS, KNOWN), generator=generator, dtype=torch.int32)
    total = torch.randint(1, KNOWN, (SLOTS,), generator=generator, dtype=torch.int32)
    return logits, slots, positions, Kept(known, total)


def tokens_of(kept: Kept, slots: torch.Tensor, positions: torch.Tensor) -> list[int]:
    found = []
    for slot, position in zip(slots.tolist(), positions.tolist(), strict=True):
        accepted = position + 1 < int(kept.total[slot])
        found.append(int(kept.known[slot, position + 1]) if accepted else REJECTED)
    return found


@interpreted
@pytest.mark.parametrize("rows", [1, 4, 9])
@pytest.mark.parametrize("partly", [False, True])
def test_rows_and_tokens_are_those_of_plain_torch(rows: int, partly: bool) -> None:
    ours, theirs = gpu_tables(), DeviceTables()
    for step in range(3):
        logits, slots, positions, kept = engine_step(step, rows)
        at = torch.arange(rows - 1, -1, -1, dtype=torch.int32) if partly else None
        table = ours.observe(logits, at, slots, positions)
        wanted = theirs.observe(logits, None if at is None else at.long(), slots, positions)
        rows_found, rows_wanted = (one.rows.words.copy() for one in (table, wanted))
        assert (rows_found[:, 1:3] == rows_wanted[:, 1:3]).all(), "slot and position"
        found, expected = (words[:, 3:].copy() for words in (rows_found, rows_wanted))
        for name in ("entropy", "logsumexp", "max_logit", "margin"):
            ours_, theirs_ = (words.view(ROW)[:, 0][name] for words in (rows_found, rows_wanted))
            assert ours_ == pytest.approx(theirs_, abs=1e-5), name
        assert (found[:, 11:31] == expected[:, 11:31]).all(), "the likeliest"
        logits /= 0.7  # as the sampler does, in place
        told = table.tokens(logits, at, kept).words
        ids = torch.tensor(tokens_of(kept, slots, positions), dtype=torch.int32)
        plain = wanted.tokens(logits, None if at is None else at.long(), ids)
        known = plain.words[:, 0] != REJECTED
        assert (told[:, 0] == plain.words[:, 0]).all()
        assert (told[known] == plain.words[known]).all()


@interpreted
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_a_step_is_three_kernels_and_one_copy_and_takes_no_memory(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from corevital.engines import gpu_tables as module
    from corevital.kernels import triton as kernels

    launched: Counter[str] = Counter()
    for owner, name in ((kernels, "chunk_kernel"), (kernels, "row_kernel"), (module, "token_kernel")):
        monkeypatch.setattr(owner, name, Launches(name, launched))
    monkeypatch.setattr(emitters, "tables_for", lambda device, rows: gpu_tables())
    posted: list[Step] = []
    emitter, who, seen = Emitter(posted.append), occupants(SLOTS), Counting()
    at = torch.tensor([2, 0], dtype=torch.int32) if runner == "v1" else None
    for step in range(4):
        logits, slots, positions, kept = engine_step(step, SLOTS)
        if step == 1:  # the first is the warm-up
            seen.seen.clear()
            launched.clear()
        with seen:
            if at is None:
                observed = emitter.observe(logits, None, slots, positions, who)
                emitter.settle(observed, kept)
            else:
                observed = emitter.observe(logits, at, [0, 1], [step, step], who)
                emitter.settle(observed, [5, 7])
        posted.clear()
    assert launched == {"chunk_kernel": 3, "row_kernel": 3, "token_kernel": 3}
    assert seen.seen == {"copy_": 3}


class Launches:
    """A stand-in for a kernel that counts its launches, and does nothing: the interpreter uses torch itself."""

    def __init__(self, name: str, launched: Counter[str]) -> None:
        self.name, self.launched = name, launched

    def __getitem__(self, grid: Any) -> Any:
        self.launched[self.name] += 1
        return lambda *arguments, **options: None


@interpreted
def test_a_ring_without_room_measures_nothing_and_goes_on() -> None:
    tables, held = gpu_tables(rows=4), []
    logits, slots, positions, _ = engine_step(0, SLOTS)
    while (table := tables.observe(logits, None, slots, positions)) is not None:
        held.append(table)
    assert tables.lost == SLOTS
    assert len(held) * SLOTS * 57 * 4 == tables.nbytes
    first = held[0].rows.words.copy()
    held.clear()
    gc.collect()
    again = tables.observe(logits, None, slots, positions)
    assert np.array_equal(again.rows.words[:, 1:], first[:, 1:])
    assert tables.observe(torch.randn(17, VOCAB), None, slots, positions) is None, "a step that is too large"


@interpreted
def test_warm_up_takes_all_that_steps_need() -> None:
    from corevital.kernels import triton as kernels

    tables = gpu_tables(rows=SLOTS)
    tables.warm_up(VOCAB)
    workspaces, every = dict(kernels._workspaces), dict(kernels._every_row)
    for rows in (1, SLOTS):
        logits, slots, positions, kept = engine_step(0, rows)
        table = tables.observe(logits, None, slots, positions)
        table.tokens(logits, None, kept)
    assert kernels._workspaces == workspaces
    assert kernels._every_row == every
