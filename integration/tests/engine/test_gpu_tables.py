"""Tables of a GPU, in Triton's interpreter: what they hold. What a step queues: test_gpu_steps.py.

The interpreter is chosen for a process as a whole, before Triton is imported: the tests run in a separate one.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integration.tests.engine.conftest import INTERPRETED

from corevital.frames.layout import REJECTED, ROW
from corevital.steps.device_tables import DeviceTables
from corevital.steps.step import Kept

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a separate process, with TRITON_INTERPRET=1")
ROOT = Path(__file__).parents[3]
VOCAB, SLOTS, KNOWN = 300, 4, 40


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_tritons_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-W", "ignore::RuntimeWarning"],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr
    assert "9 passed" in done.stdout, done.stdout


def gpu_tables(rows: int = 16) -> Any:
    from corevital.steps.gpu_tables import GpuTables

    return GpuTables(torch.device("cpu"), rows)


def engine_step(step: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Kept]:
    """Logits, their slots and positions, and what the engine knows by the next step."""
    generator = torch.Generator().manual_seed(step)
    logits = torch.randn(rows, VOCAB, generator=generator) * 4
    slots = torch.randperm(SLOTS, generator=generator).repeat_interleave(-(-rows // SLOTS))[:rows]
    slots = slots.to(torch.int64 if step % 2 else torch.int32)  # vLLM's versions differ
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
        table = ours.measure(logits, at, slots, positions)
        wanted = theirs.measure(logits, None if at is None else at.long(), slots, positions)
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
def test_a_row_of_no_slot_has_no_token_and_reads_none() -> None:
    tables = gpu_tables()
    kept = Kept(
        torch.full((SLOTS, KNOWN), 7, dtype=torch.int32)[1:], torch.full((SLOTS,), KNOWN, dtype=torch.int32)[1:]
    )
    table = tables.measure(torch.randn(2, VOCAB), None, torch.tensor([-1, 0]), torch.tensor([0, 0]))
    assert table.tokens(None, None, kept).words[:, 0].tolist() == [REJECTED, 7]


@interpreted
def test_a_ring_without_room_measures_nothing_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corevital.steps.gpu_tables._SEGMENTS", 2)
    monkeypatch.setattr("corevital.steps.gpu_tables._LARGEST", 4)
    tables, held = gpu_tables(rows=4), []
    logits, slots, positions, _ = engine_step(0, SLOTS)
    while (table := tables.measure(logits, None, slots, positions)) is not None:
        held.append(table)
    assert len(held) * SLOTS * 57 * 4 == tables.nbytes
    first = held[0].rows.words.copy()
    held.clear()
    gc.collect()
    again = tables.measure(logits, None, slots, positions)
    assert np.array_equal(again.rows.words[:, 1:], first[:, 1:])
    assert tables.measure(torch.randn(17, VOCAB), None, slots, positions) is None, "a step that is too large"


@interpreted
def test_warm_up_takes_all_that_steps_need() -> None:
    from corevital.kernels import triton_gpu as kernels

    tables = gpu_tables(rows=SLOTS)
    tables.warm_up(VOCAB)
    workspaces, every = dict(kernels._workspaces), dict(kernels._every_row)
    for rows in (1, SLOTS):
        logits, slots, positions, kept = engine_step(0, rows)
        table = tables.measure(logits, None, slots, positions)
        table.tokens(logits, None, kept)
    assert kernels._workspaces == workspaces
    assert kernels._every_row == every
