"""What the adapters hand over cannot harm the engine, whatever the model or another logits processor made of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from integration.tests.engine.sink import Sink

from corevital.frames.layout import ROW
from corevital.frames.stamp import Stamp
from corevital.steps.frame_thread import FrameThread
from corevital.steps.recorder import Recorder
from corevital.steps.slots import Owners
from corevital.steps.step import UNKNOWN, SampledStep

OWNERS = Owners.of([Stamp("0" * 32, key) for key in range(3)], [1.0] * 3)


@pytest.mark.usefixtures("tables")
def test_tokens_are_read_within_the_logits_and_those_are_released() -> None:
    posted: list[Any] = []
    recorder, logits = Recorder(posted.append), torch.randn(3, 100)
    observed = recorder.record_logits(logits, None, [0, 1, 2], [4, 4, 4], OWNERS)
    # the second is a prompt's, of a model with more embeddings than outputs
    recorder.record_tokens(observed, [7, 102, UNKNOWN])
    assert isinstance(posted[-1], SampledStep)
    words = posted[-1].tokens.words
    assert words[:, 0].tolist() == [7, 102, UNKNOWN]
    assert words.view(np.float32)[0, 1] == logits[0, 7]
    assert words.view(np.float32)[0, 2] == logits[0].max()
    assert observed.logits is None


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_processors_dtype_is_read_as_what_it_is(dtype: torch.dtype) -> None:
    posted: list[Any] = []
    recorder, logits = Recorder(posted.append), torch.randn(3, 100).to(dtype)
    recorder.record_tokens(recorder.record_logits(logits, None, [0, 1, 2], [4, 4, 4], OWNERS), [7, 8, 9])
    assert isinstance(posted[-1], SampledStep)
    rows = posted[0].rows.words.view(ROW)[:, 0]
    assert rows["entropy"] == pytest.approx(torch.distributions.Categorical(logits=logits.float()).entropy(), abs=1e-4)
    told = posted[-1].tokens.words.view(np.float32)[:, 1]
    assert told.tolist() == logits[[0, 1, 2], [7, 8, 9]].float().tolist()


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("kind", ["some rows", "columns apart", "rows apart", "bfloat16, some rows", "one column"])
def test_each_row_is_read_wherever_it_lies(kind: str) -> None:
    posted: list[Any] = []
    whole = torch.randn(5, 300).to(torch.bfloat16 if "bfloat16" in kind else torch.float32)
    views = {"columns apart": whole.t()[:, :5], "rows apart": whole[:, 7:100], "one column": whole[:, :1]}
    logits = views.get(kind, whole)
    at = torch.tensor([4, 0, 2]) if "some" in kind else None
    rows = (logits if at is None else logits[at]).clone()
    tokens = [row % logits.shape[1] for row in range(len(rows))]
    recorder, owners = Recorder(posted.append), Owners.of([Stamp("0" * 32, 1)] * len(rows), [1.0] * len(rows))
    observed = recorder.record_logits(logits, at, list(range(len(rows))), [4] * len(rows), owners)
    assert posted[0].rows.words.view(ROW)[:, 0]["max_logit"].tolist() == rows.max(1).values.float().tolist()
    logits *= 2  # the sampler, in place
    recorder.record_tokens(observed, tokens)
    assert isinstance(posted[1], SampledStep)
    words = posted[1].tokens.words
    assert words[:, 0].tolist() == tokens
    wanted = [[float(2 * row[token]), float(2 * row.max())] for row, token in zip(rows, tokens, strict=True)]
    assert words.view(np.float32)[:, 1:].tolist() == wanted


@pytest.mark.usefixtures("tables")
def test_steps_of_any_size_keep_their_tables_however_many_come_before_their_tokens() -> None:
    posted: list[Any] = []
    recorder, seen, batch = Recorder(posted.append), [], Owners.of([Stamp("0" * 32, 1)] * 700, [1.0] * 700)
    for index, rows in enumerate([100, 100, 100, 700, 1, 255, 2]):
        logits = torch.randn(rows, 50)
        seen.append((logits, recorder.record_logits(logits, None, list(range(rows)), [index] * rows, batch)))
    for logits, observed in reversed(seen):
        recorder.record_tokens(observed, [3] * len(logits))
    tokens = {phase.step: phase.tokens for phase in posted if isinstance(phase, SampledStep)}
    for (logits, _), step in zip(seen, posted, strict=False):
        assert step.size == len(logits)
        assert step.rows.words.view(ROW)[:, 0]["max_logit"].tolist() == logits.max(1).values.tolist()
        assert tokens[step].words.view(np.float32)[:, 1].tolist() == logits[:, 3].tolist()


@pytest.mark.usefixtures("tables")
def test_logits_beyond_the_bound_are_released_and_their_tokens_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corevital.steps.recorder.MOST_KEPT_BYTES", 1500)
    posted: list[Any] = []
    recorder, logits = Recorder(posted.append), torch.randn(3, 100)
    first, second = (recorder.record_logits(logits, None, [0, 1, 2], [4, 4, 4], OWNERS) for _ in range(2))
    assert (first.logits, second.logits is logits) == (None, True)
    recorder.record_tokens(first, [7, 8, 9])
    assert isinstance(posted[-1], SampledStep)
    assert posted[-1].tokens.words[:, 0].tolist() == [7, 8, 9]
    assert np.isnan(posted[-1].tokens.words.view(np.float32)[:, 1:]).all()


@pytest.mark.usefixtures("tables")
def test_logits_given_other_memory_after_us_are_not_read_where_they_were() -> None:
    posted: list[Any] = []
    recorder, logits = Recorder(posted.append), torch.randn(3, 2_000_000)
    observed = recorder.record_logits(logits, None, [0, 1, 2], [4, 4, 4], OWNERS)
    logits.data = logits * 2  # the memory that was observed is unmapped
    recorder.record_tokens(observed, [7, 8, 9])
    assert isinstance(posted[-1], SampledStep)
    words = posted[-1].tokens.words
    assert words[:, 0].tolist() == [7, 8, 9]
    told = torch.from_numpy(words.view(np.float32)[:, 1].copy())
    assert bool(told.isnan().all()) or torch.equal(told, logits[range(3), [7, 8, 9]])


@pytest.mark.usefixtures("tables")
def test_tokens_that_are_not_one_a_row_are_refused() -> None:
    recorder, logits = Recorder(lambda step: None), torch.randn(3, 100)
    observed = recorder.record_logits(logits, None, [0, 1, 2], [4, 4, 4], OWNERS)
    with pytest.raises((ValueError, RuntimeError)):
        recorder.record_tokens(observed, [7, 8, 9, 10])


def test_steps_in_and_out_of_the_host_s_memory_are_sent_as_they_were() -> None:
    """Model runner V2 has slots and positions in tensors, which go another way where the dtype is unusual."""
    sink = Sink()
    frame_thread = FrameThread(sink)
    recorder = Recorder(frame_thread.post)
    wanted = {}
    for index, dtype in enumerate([torch.float32, torch.float16, torch.float16, torch.float32, torch.float32]):
        rows = 1 + index % 3
        logits = torch.randn(rows, 100).to(dtype)
        for key in range(rows):
            wanted[key, index] = float(logits[key].max()), 10 * index + key
        slots, positions = torch.arange(rows, dtype=torch.int32), torch.full((rows,), index)
        observed = recorder.record_logits(logits, None, slots, positions, OWNERS)
        recorder.record_tokens(observed, torch.tensor([10 * index + key for key in range(rows)], dtype=torch.int32))
    frame_thread.close()
    assert {at: (row["max_logit"], sink.tokens[at][0]) for at, row in sink.rows.items()} == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_nothing_waits_for_the_gpu() -> None:
    posted: list[Any] = []
    recorder, logits = Recorder(posted.append), torch.randn(3, 100, device="cuda")
    for step in range(2):  # the first compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            recorder.record_tokens(recorder.record_logits(logits, None, [0, 1, 2], [4, 4, 4], OWNERS), [7, 8, 9])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert isinstance(posted[-1], SampledStep)
    assert posted[-1].tokens.arrived
    assert posted[-1].tokens.words.view(np.float32)[:, 1].tolist() == logits.cpu()[[0, 1, 2], [7, 8, 9]].tolist()


def test_a_dtype_that_is_not_read_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got torch\.float64"):
        Recorder(lambda step: None).record_logits(torch.randn(3, 100).double(), None, [0], [0], OWNERS)


class OutOfMemory:
    """A stand-in for tables on a device that is full."""

    def __init__(self) -> None:
        self.tries = 0

    def measure(self, *_: object) -> None:
        self.tries += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")


def test_a_device_that_is_full_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    posted: list[Any] = []
    lost: list[tuple[Owners, int]] = []
    recorder = Recorder(posted.append, lose=lambda owners, rows: lost.append((owners, rows)))
    full, logits = OutOfMemory(), torch.randn(3, 100)
    before = recorder.record_logits(logits, None, [0, 1, 2], [4, 4, 4], OWNERS)
    assert before is not None
    monkeypatch.setattr(recorder, "_tables", full)
    for _ in range(5):
        assert recorder.record_logits(logits, None, [0, 1, 2], [5, 5, 5], OWNERS) is None
    assert full.tries == 1
    assert lost == [(OWNERS, 3)] * 5
    assert before.logits is None, "what is kept is the first thing to give back"
    recorder.record_tokens(before, [7, 8, 9])  # its tokens are reported, without their logits
    assert isinstance(posted[-1], SampledStep)
    assert np.isnan(posted[-1].tokens.words.view(np.float32)[:, 1:]).all()
    (line,) = logged()
    assert "out of memory: nothing is measured for 30 s" in line.getMessage()
    monkeypatch.setattr(recorder, "_tables", None)
    monkeypatch.setattr("corevital.steps.recorder.time", SimpleNamespace(monotonic=lambda: time.monotonic() + 31))
    assert recorder.record_logits(logits, None, [0, 1, 2], [6, 6, 6], OWNERS) is not None


def test_no_copy_is_made_that_is_too_large_or_for_which_there_is_no_memory() -> None:
    recorder, tries = Recorder(lambda step: None, most_kept=3 * 100 * 4), []

    class Full:
        """Stands in for logits on a full device."""

        nbytes, dtype = 4, torch.float32

        def to(self, *_: object, **__: object) -> None:
            tries.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    logits = torch.randn(3, 100)
    copied = recorder.copy(logits)
    assert copied is not None
    assert torch.equal(copied, logits)
    assert copied.data_ptr() != logits.data_ptr()
    half = recorder.copy(logits.half())
    assert half is not None
    assert half.dtype is torch.float32
    assert recorder.copy(torch.randn(4, 100)) is None
    assert [recorder.copy(Full()) for _ in range(3)] == [None] * 3
    assert tries == [1], "then it rests"


def test_another_runtime_error_is_not_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(lambda step: None)
    monkeypatch.setattr(recorder, "_tables", SimpleNamespace(measure=lambda *_: torch.zeros(2) @ torch.zeros(3)))
    with pytest.raises(RuntimeError, match="size"):
        recorder.record_logits(torch.randn(3, 100), None, [0, 1, 2], [5, 5, 5], OWNERS)


def test_logits_are_kept_by_their_own_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corevital.steps.recorder.MOST_KEPT_BYTES", 3 * 100 * 4)
    recorder, observed = Recorder(lambda step: None), []
    for rows in (2, 1, 2):
        owners = Owners.of([Stamp("0" * 32, 1)] * rows, [1.0] * rows)
        at = list(range(rows))
        observed.append(recorder.record_logits(torch.randn(rows, 100), None, at, at, owners))
    assert [one is not None and one.logits is not None for one in observed] == [False, True, True]
