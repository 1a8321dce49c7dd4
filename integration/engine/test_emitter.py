"""What the adapters hand over cannot harm the engine, whatever the model or another logits processor made of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from integration.engine.recorder import Recorder

from corevital.engines.courier import Courier
from corevital.engines.emitter import Emitter
from corevital.engines.occupants import Occupants
from corevital.engines.steps import UNKNOWN, Step
from corevital.frames.record import ROW
from corevital.frames.stamp import Stamp

OCCUPANTS = Occupants.of([Stamp("0" * 32, key) for key in range(3)], [1.0] * 3)


@pytest.mark.usefixtures("tables")
def test_tokens_are_read_within_the_logits_and_those_are_let_go() -> None:
    posted: list[Step] = []
    emitter, logits = Emitter(posted.append), torch.randn(3, 100)
    observed = emitter.observe(logits, None, [0, 1, 2], [4, 4, 4], OCCUPANTS)
    # the second is a prompt's, of a model with more embeddings than outputs
    emitter.settle(observed, [7, 102, UNKNOWN])
    assert posted[-1].tokens is not None
    words = posted[-1].tokens.words
    assert words[:, 0].tolist() == [7, 102, UNKNOWN]
    assert words.view(np.float32)[0, 1] == logits[0, 7]
    assert words.view(np.float32)[0, 2] == logits[0].max()
    assert observed.logits is None


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_processors_dtype_is_read_as_what_it_is(dtype: torch.dtype) -> None:
    posted: list[Step] = []
    emitter, logits = Emitter(posted.append), torch.randn(3, 100).to(dtype)
    emitter.settle(emitter.observe(logits, None, [0, 1, 2], [4, 4, 4], OCCUPANTS), [7, 8, 9])
    assert posted[-1].tokens is not None
    rows = posted[0].rows.words.view(ROW)[:, 0]
    assert rows["entropy"] == pytest.approx(torch.distributions.Categorical(logits=logits.float()).entropy(), abs=1e-4)
    told = posted[-1].tokens.words.view(np.float32)[:, 1]
    assert told.tolist() == logits[[0, 1, 2], [7, 8, 9]].float().tolist()


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("kind", ["some rows", "columns apart", "rows apart", "bfloat16, some rows", "one column"])
def test_each_row_is_read_wherever_it_lies(kind: str) -> None:
    posted: list[Step] = []
    whole = torch.randn(5, 300).to(torch.bfloat16 if "bfloat16" in kind else torch.float32)
    views = {"columns apart": whole.t()[:, :5], "rows apart": whole[:, 7:100], "one column": whole[:, :1]}
    logits = views.get(kind, whole)
    at = torch.tensor([4, 0, 2]) if "some" in kind else None
    rows = (logits if at is None else logits[at]).clone()
    tokens = [row % logits.shape[1] for row in range(len(rows))]
    emitter, occupants = Emitter(posted.append), Occupants.of([Stamp("0" * 32, 1)] * len(rows), [1.0] * len(rows))
    observed = emitter.observe(logits, at, list(range(len(rows))), [4] * len(rows), occupants)
    assert posted[0].rows.words.view(ROW)[:, 0]["max_logit"].tolist() == rows.max(1).values.float().tolist()
    logits *= 2  # the sampler, in place
    emitter.settle(observed, tokens)
    assert posted[0].tokens is not None
    words = posted[0].tokens.words
    assert words[:, 0].tolist() == tokens
    wanted = [[float(2 * row[token]), float(2 * row.max())] for row, token in zip(rows, tokens, strict=True)]
    assert words.view(np.float32)[:, 1:].tolist() == wanted


@pytest.mark.usefixtures("tables")
def test_steps_of_any_size_keep_their_tables_however_many_come_before_their_tokens() -> None:
    posted: list[Step] = []
    emitter, seen, batch = Emitter(posted.append), [], Occupants.of([Stamp("0" * 32, 1)] * 700, [1.0] * 700)
    for step, rows in enumerate([100, 100, 100, 700, 1, 255, 2]):
        logits = torch.randn(rows, 50)
        seen.append((logits, emitter.observe(logits, None, list(range(rows)), [step] * rows, batch)))
    for logits, observed in reversed(seen):
        emitter.settle(observed, [3] * len(logits))
    for (logits, _), step in zip(seen, posted, strict=False):
        assert step.size == len(logits)
        assert step.rows.words.view(ROW)[:, 0]["max_logit"].tolist() == logits.max(1).values.tolist()
        assert step.tokens is not None
        assert step.tokens.words.view(np.float32)[:, 1].tolist() == logits[:, 3].tolist()


@pytest.mark.usefixtures("tables")
def test_logits_beyond_the_bound_are_let_go_and_their_tokens_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corevital.engines.emitter.MOST_KEPT_BYTES", 1500)
    posted: list[Step] = []
    emitter, logits = Emitter(posted.append), torch.randn(3, 100)
    first, second = (emitter.observe(logits, None, [0, 1, 2], [4, 4, 4], OCCUPANTS) for _ in range(2))
    assert (first.logits, second.logits is logits) == (None, True)
    emitter.settle(first, [7, 8, 9])
    assert posted[-1].tokens is not None
    assert posted[-1].tokens.words[:, 0].tolist() == [7, 8, 9]
    assert np.isnan(posted[-1].tokens.words.view(np.float32)[:, 1:]).all()


@pytest.mark.usefixtures("tables")
def test_logits_given_other_memory_after_us_are_not_read_where_they_were() -> None:
    posted: list[Step] = []
    emitter, logits = Emitter(posted.append), torch.randn(3, 2_000_000)
    observed = emitter.observe(logits, None, [0, 1, 2], [4, 4, 4], OCCUPANTS)
    logits.data = logits * 2  # the memory that was observed is unmapped
    emitter.settle(observed, [7, 8, 9])
    assert posted[-1].tokens is not None
    words = posted[-1].tokens.words
    assert words[:, 0].tolist() == [7, 8, 9]
    told = torch.from_numpy(words.view(np.float32)[:, 1].copy())
    assert bool(told.isnan().all()) or torch.equal(told, logits[range(3), [7, 8, 9]])


@pytest.mark.usefixtures("tables")
def test_tokens_that_are_not_one_a_row_are_refused() -> None:
    emitter, logits = Emitter(lambda step: None), torch.randn(3, 100)
    observed = emitter.observe(logits, None, [0, 1, 2], [4, 4, 4], OCCUPANTS)
    with pytest.raises((ValueError, RuntimeError)):
        emitter.settle(observed, [7, 8, 9, 10])


def test_steps_in_and_out_of_the_host_s_memory_are_sent_as_they_were() -> None:
    """Model runner V2 has slots and positions in tensors, which go another way where the dtype is unusual."""
    recorder = Recorder()
    courier = Courier(recorder)
    emitter = Emitter(courier.post)
    wanted = {}
    for index, dtype in enumerate([torch.float32, torch.float16, torch.float16, torch.float32, torch.float32]):
        rows = 1 + index % 3
        logits = torch.randn(rows, 100).to(dtype)
        for key in range(rows):
            wanted[key, index] = float(logits[key].max()), 10 * index + key
        slots, positions = torch.arange(rows, dtype=torch.int32), torch.full((rows,), index)
        observed = emitter.observe(logits, None, slots, positions, OCCUPANTS)
        emitter.settle(observed, torch.tensor([10 * index + key for key in range(rows)], dtype=torch.int32))
    courier.close()
    assert {at: (row["max_logit"], recorder.tokens[at][0]) for at, row in recorder.rows.items()} == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_nothing_waits_for_the_gpu() -> None:
    posted: list[Step] = []
    emitter, logits = Emitter(posted.append), torch.randn(3, 100, device="cuda")
    for step in range(2):  # the first compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            emitter.settle(emitter.observe(logits, None, [0, 1, 2], [4, 4, 4], OCCUPANTS), [7, 8, 9])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert posted[-1].tokens is not None
    assert posted[-1].tokens.arrived
    assert posted[-1].tokens.words.view(np.float32)[:, 1].tolist() == logits.cpu()[[0, 1, 2], [7, 8, 9]].tolist()


def test_a_dtype_that_is_not_read_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got torch\.float64"):
        Emitter(lambda step: None).observe(torch.randn(3, 100).double(), None, [0], [0], OCCUPANTS)


class OutOfMemory:
    """A stand-in for tables on a device that is full."""

    def __init__(self) -> None:
        self.tries = 0

    def observe(self, *_: object) -> None:
        self.tries += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")


def test_a_device_that_is_full_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    posted: list[Step] = []
    emitter, full, logits = Emitter(posted.append), OutOfMemory(), torch.randn(3, 100)
    before = emitter.observe(logits, None, [0, 1, 2], [4, 4, 4], OCCUPANTS)
    assert before is not None
    monkeypatch.setattr(emitter, "_tables", full)
    for _ in range(5):
        assert emitter.observe(logits, None, [0, 1, 2], [5, 5, 5], OCCUPANTS) is None
    assert full.tries == 1
    assert before.logits is None, "what is kept is the first thing to give back"
    emitter.settle(before, [7, 8, 9])  # its tokens are reported, without their logits
    assert posted[-1].tokens is not None
    assert np.isnan(posted[-1].tokens.words.view(np.float32)[:, 1:]).all()
    (line,) = logged()
    assert "out of memory: nothing is measured for 30 s" in line.getMessage()
    monkeypatch.setattr(emitter, "_tables", None)
    monkeypatch.setattr("corevital.engines.emitter.time", SimpleNamespace(monotonic=lambda: time.monotonic() + 31))
    assert emitter.observe(logits, None, [0, 1, 2], [6, 6, 6], OCCUPANTS) is not None


def test_another_runtime_error_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    emitter = Emitter(lambda step: None)
    monkeypatch.setattr(emitter, "_tables", SimpleNamespace(observe=lambda *_: torch.zeros(2) @ torch.zeros(3)))
    with pytest.raises(RuntimeError, match="size"):
        emitter.observe(torch.randn(3, 100), None, [0, 1, 2], [5, 5, 5], OCCUPANTS)


def test_logits_are_kept_by_their_own_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corevital.engines.emitter.MOST_KEPT_BYTES", 3 * 100 * 4)
    emitter, observed = Emitter(lambda step: None), []
    for rows in (2, 1, 2):
        occupants = Occupants.of([Stamp("0" * 32, 1)] * rows, [1.0] * rows)
        at = list(range(rows))
        observed.append(emitter.observe(torch.randn(rows, 100), None, at, at, occupants))
    assert [one is not None and one.logits is not None for one in observed] == [False, True, True]
