"""What a step queues on a GPU and what we hold there, counted on a CPU: kernels, streams and events are stand-ins."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from integration.tests.engine.conftest import INTERPRETED
from torch.utils._python_dispatch import TorchDispatchMode

from corevital.engines.vllm import facts, runner_v1, runner_v2
from corevital.engines.vllm.runner_v1 import V1Adapter
from corevital.engines.vllm.runner_v2 import V2Adapter
from corevital.engines.vllm.stamps import EXTRA_ARG
from corevital.frames.layout import Source
from corevital.frames.lifecycle import Admitted
from corevital.frames.sender import FrameSender
from corevital.frames.stamp import Stamp
from corevital.steps import device as devices
from corevital.steps import recorder
from corevital.steps.frame_thread import FrameThread
from corevital.steps.recorder import Recorder
from corevital.steps.slots import Owners
from corevital.steps.step import Kept, Step
from corevital_otel.conventions import DROPPED
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("nothing runs here: kernels are compiled ones or stand-ins", allow_module_level=True)

from integration.bench import kernel_ptx

from corevital.kernels import triton_gpu as kernels
from corevital.steps import gpu_tables
from corevital.steps.gpu_tables import GpuTables

VIEWS = {"slice", "select", "view", "detach", "alias", "as_strided", "expand", "unsqueeze", "narrow"}
CPU, VOCAB, SLOTS, TOKENS = torch.device("cpu"), 300, 6, 40
STEPS_MADE = 70
"""More than one part of the ring takes."""
A_STEP = {"chunk_kernel": 1, "row_kernel": 1, "token_kernel": 1, "copy_": 1, "event": 1}


class Gpu(TorchDispatchMode):
    """Counts what is queued while it is entered: torch's operations but for views, launches and events."""

    def __init__(self) -> None:
        super().__init__()
        self.queued: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.queued[name] += 1
        return func(*args, **(kwargs or {}))


class Launches:
    """A stand-in for a kernel, which does nothing."""

    def __init__(self, name: str, gpu: Gpu) -> None:
        self.name, self.gpu = name, gpu

    def __getitem__(self, grid: Any) -> Any:
        self.gpu.queued[self.name] += 1
        return lambda *arguments, **options: None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A CPU taken for a GPU. What is counted in the fixture's tests is what they ask for after a warm-up."""
    counting = Gpu()

    class Event:
        def __init__(self) -> None:
            counting.queued["event made"] += 1

        def record(self, stream: Any = None) -> None:
            counting.queued["event"] += 1

        def query(self) -> bool:
            return True

    def tables_for(device: torch.device, rows: int) -> GpuTables:
        tables = GpuTables(CPU, rows)
        tables._on_gpu = True
        return tables

    for owner, name in ((kernels, "chunk_kernel"), (kernels, "row_kernel"), (gpu_tables, "token_kernel")):
        monkeypatch.setattr(owner, name, Launches(name, counting))
    monkeypatch.setattr(recorder, "tables_for", tables_for)
    for module in (runner_v1, runner_v2):
        monkeypatch.setattr(module, "is_compiled", lambda device: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(kernels, "_workspaces", {})
    monkeypatch.setattr(kernels, "_every_row", {})
    return counting


def stamped(key: int) -> SimpleNamespace:
    """Sampling parameters; key 0: not measured."""
    extra = {EXTRA_ARG: str(Stamp("0" * 32, key))} if key else None
    return SimpleNamespace(
        extra_args=extra, temperature=0.7, presence_penalty=0, frequency_penalty=0, repetition_penalty=1
    )


def recorder_of(posted: list[Any]) -> Recorder:
    made = Recorder(posted.append, SLOTS * 4)
    made.warm_up(VOCAB, CPU)
    return made


def v1_steps(keys: list[int], asynchronous: bool) -> Iterator[Callable[[], object]]:
    """Steps of V1, each as a call that makes ours; what the engine does lies between them."""
    posted: list[Step] = []
    adapter, outputs = V1Adapter(recorder_of(posted)), [[] for _ in keys]  # type: ignore[var-annotated]
    added = [(row, stamped(key), None, outputs[row]) for row, key in enumerate(keys)]
    adapter.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    for _ in range(STEPS_MADE):
        logits = torch.randn(len(keys), VOCAB)

        def step(logits: torch.Tensor = logits) -> None:
            adapter.update_state(None)
            if asynchronous:  # vLLM fills the placeholders in between
                for output in outputs:
                    output[-1:] = [7] if output else []
            adapter.apply(logits)

        yield step
        for output in outputs:
            output.append(-1 if asynchronous else 7)
    assert len(posted) >= STEPS_MADE


def v2_steps(keys: list[int], dtype: torch.dtype, drafts: int, parts: int) -> Iterator[Callable[[], object]]:
    """Steps of V2, likewise. ``dtype`` is that of vLLM's mapping of rows to slots: int64 in 0.32."""
    posted: list[Step] = []
    lengths = SimpleNamespace(np=np.full(SLOTS, 3, np.int32))
    states: Any = SimpleNamespace(
        max_num_reqs=SLOTS,
        all_token_ids=SimpleNamespace(gpu=torch.zeros((SLOTS, TOKENS), dtype=torch.int32)),
        total_len=SimpleNamespace(gpu=torch.zeros(SLOTS, dtype=torch.int32)),
        prompt_len=lengths,
        prefill_len=lengths,
    )
    adapter = V2Adapter(recorder_of(posted), states)
    for slot, key in enumerate(keys):
        assert adapter.add_request(slot, stamped(key)) == (key > 0)
    for _ in range(STEPS_MADE):
        slots = torch.arange(len(keys), dtype=dtype).repeat_interleave(1 + drafts)
        logits, positions = torch.randn(len(slots), VOCAB), torch.arange(len(slots))
        cuts = [len(keys) * part // parts for part in range(parts + 1)]
        pieces = []
        for first, last in pairwise(cuts):
            rows, which = slice(first * (1 + drafts), last * (1 + drafts)), np.arange(first, last, dtype=np.int32)
            context = SimpleNamespace(expanded_idx_mapping=slots[rows], idx_mapping_np=which, pos=positions[rows])
            pieces.append((logits[rows], context))

        def step(pieces: Any = pieces) -> None:
            adapter.apply_staged_writes()  # vLLM's apply_staged_writes
            for part, its in pieces:
                adapter.apply(part, its)

        yield step
    assert len(posted) >= STEPS_MADE * parts


ALL, SOME = [1, 2, 3, 4], [0, 2, 0, 4]
STEPS = {
    "v1, all rows": lambda: v1_steps(ALL, False),
    "v1, some rows": lambda: v1_steps(SOME, False),
    "v1 asynchronous, all rows": lambda: v1_steps(ALL, True),
    "v1 asynchronous, some rows": lambda: v1_steps(SOME, True),
    **{
        f"v2, {name} rows, slots of {str(dtype)[6:]}, {drafts} drafts, {parts} parts": (
            lambda keys=keys, dtype=dtype, drafts=drafts, parts=parts: v2_steps(keys, dtype, drafts, parts)
        )
        for name, keys in (("all", ALL), ("some", SOME))
        for dtype in (torch.int32, torch.int64)
        for drafts, parts in ((0, 1), (3, 1), (3, 2))
    },
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_is_three_kernels_one_copy_and_one_event_and_takes_no_memory(kind: str, gpu: Gpu) -> None:
    """A large verification comes in parts, of a GiB each, and each is a separate step."""
    parts = 2 if "2 parts" in kind else 1
    for number, step in enumerate(STEPS[kind]()):
        gpu.queued.clear()
        with gpu:
            step()
        if number >= 1:  # in the first there is nothing to settle, and the rows of a batch measured in part are sent
            assert gpu.queued == {name: parts * count for name, count in A_STEP.items()}, number


def test_what_would_be_a_kernel_or_a_copy_is_counted() -> None:
    numbers, where = torch.arange(4), torch.tensor([1, 0])
    for operation in (
        lambda: numbers.to(torch.int32),
        lambda: numbers.int().long(),
        lambda: torch.where(numbers > 1, numbers, 0),
        lambda: numbers.index_select(0, where),
        lambda: numbers[where],
        lambda: numbers + 1,
        lambda: torch.empty(3),
        lambda: numbers.new_zeros(3),
        numbers.clone,
    ):
        with Gpu() as counting:
            operation()
        assert counting.queued
    with Gpu() as counting:
        numbers[1:3][:, None].view(2).unsqueeze(0)
    assert not counting.queued


@pytest.mark.parametrize("drafts", [0, 3])
def test_logits_are_released_when_their_tokens_are_known(drafts: int, gpu: Gpu) -> None:
    """On V2 that is before the next forward pass, and so it is on V1 without asynchronous scheduling."""
    posted: list[Step] = []
    made = recorder_of(posted)
    rows = 2 * (1 + drafts)
    logits, slots = torch.randn(rows, VOCAB), torch.arange(2).repeat_interleave(1 + drafts)
    gone = weakref.ref(logits)
    who = Owners.of([Stamp("0" * 32, 1), Stamp("0" * 32, 2)], [1.0, 1.0])
    observed = made.record_logits(logits, None, slots, torch.arange(rows), who)
    assert observed is not None
    del logits
    assert gone() is not None
    known = torch.zeros((2, 9), dtype=torch.int32)
    made.record_tokens(observed, Kept(known, known[0]))
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("gpu")
def test_rows_without_room_are_counted_where_the_user_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    hub = Hub(Settings(db=tmp_path / "corevital.db"))
    hub.start()
    names: dict[str, Any] = {"request_id": "r", "engine_id": "e", "operation": "chat", "model": "m"}
    stamp = hub.admit(Admitted(**names, sequence=0, arrival_ns=time.time_ns(), prompt_tokens=3))
    assert stamp is not None
    frame_thread = FrameThread(FrameSender(Source("vllm", "v1", "raw")))
    made = Recorder(frame_thread.post, SLOTS, lose=frame_thread.lose)
    made.warm_up(VOCAB, CPU)
    tables, who = made._tables, Owners.of([stamp] * 3, [1.0] * 3)
    assert isinstance(tables, GpuTables)
    tables._lease, room = None, list(tables._free)
    tables._free.clear()
    for step in range(2):
        assert made.record_logits(torch.zeros(3, VOCAB), None, [0, 1, 2], [step] * 3, who) is None
    tables._free.extend(room)
    observed = made.record_logits(torch.zeros(3, VOCAB), None, [0, 1, 2], [2, 3, 4], who)
    assert observed is not None
    made.record_tokens(observed, [7, 7, 7])  # a worker says with its next frame what it has lost
    deadline = time.monotonic() + 10
    while hub.counters.get(DROPPED, what="record", why="queue_full") != 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    frame_thread.close()
    hub.close()


class Held(TorchDispatchMode):
    """Remembers the tensors that are made while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.made.append(weakref.ref(out))
        return out

    def nbytes(self) -> int:
        """Of the memory behind those that are still there."""
        gc.collect()
        alive = [tensor.untyped_storage() for made in self.made if (tensor := made()) is not None]
        return sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values())


def config(sequences: int, drafts: int = 0, tokens: int = 8192, utilization: float = 0.9) -> SimpleNamespace:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=sequences, max_num_batched_tokens=tokens),
        speculative_config=SimpleNamespace(num_speculative_tokens=drafts) if drafts else None,
        cache_config=SimpleNamespace(gpu_memory_utilization=utilization),
    )


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("sequences", [1, 256, 1024, 4096])
@pytest.mark.parametrize("drafts", [0, 3])
def test_what_is_held_is_what_is_reported_and_bounded(sequences: int, drafts: int) -> None:
    rows, sizes = sequences * (1 + drafts), []
    for tokens in (2048, 65536):  # of a prompt: they have no rows of logits
        kernels._workspaces.clear()
        kernels._every_row.clear()
        with Held() as held:
            made = recorder.Recorder(lambda step: None, facts.most_rows(config(sequences, drafts, tokens)))
            device, pinned = made.warm_up(151936, CPU)
        assert held.nbytes() == device + pinned
        tables = made._tables
        assert isinstance(tables, GpuTables)
        assert tables._place(rows) is not None, "the largest step fits"
        sizes.append((device, pinned))
    ring, workspace, every_row = 64 << 20, 65536 * 284, 4 * max(2048, 2 * rows)
    assert sizes[0] == sizes[1]
    assert sizes[0][0] <= ring + workspace + every_row
    assert sizes[0][1] <= ring * 58 / 57


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("gib", "utilization", "kept"), [(80, 0.9, 256), (24, 0.98, 122), (16, 0.99, 40), (16, 1.0, 40)]
)
def test_memory_is_logged_at_the_start_and_logits_take_a_quarter_of_what_is_free(
    gib: int,
    utilization: float,
    kept: int,
    logged: Callable[[], list[logging.LogRecord]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, gib << 30))
    monkeypatch.setattr(devices, "make_current", lambda device: None)
    monkeypatch.setattr(recorder, "to_device", lambda values, device: None)
    asked = config(256, utilization=utilization)
    rows, unclaimed = facts.most_rows(asked), facts.unclaimed_share(asked)
    made = devices.recorder_for(151936, rows, unclaimed, torch.device("cuda:0"), lambda step: None)
    assert made is not None
    assert abs(made._most_kept - (kept << 20)) < 1 << 20
    tables = made._tables
    assert isinstance(tables, GpuTables)
    (line,) = (record.getMessage() for record in logged())
    device, pinned, logits = -(-tables.nbytes >> 20), -(-tables.pinned_nbytes >> 20), -(-made._most_kept >> 20)
    assert f"holds {device} MiB on cuda:0 and {pinned} MiB of pinned memory, and up to {logits} MiB of logits" in line


WIDTHS = [32000, 32001, 50257, 128256, 151936]


@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942", "hip:gfx1100"])
@pytest.mark.parametrize("vocab", [*WIDTHS, 131072, 262144, (1 << 20) - 7])
def test_nothing_is_compiled_after_the_start(
    vocab: int, target: str, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    """vLLM may forbid it. Launches are recorded by what Triton would compile for them, and nothing runs."""
    gpu, ours = kernel_ptx.of(target), (kernels.chunk_kernel, kernels.row_kernel, gpu_tables.token_kernel)
    launches = [kernel_ptx.Recorder(kernel, gpu) for kernel in ours]
    for launched in launches:
        monkeypatch.setattr(launched.kernel, "run", launched)
    monkeypatch.setattr(kernels, "warp_size", lambda device: gpu.warp_size)
    tables = GpuTables(CPU, 257)
    tables.warm_up(vocab)
    warm = [set(launched.variants) for launched in launches]
    known = torch.zeros((2, 9), dtype=torch.int32)
    widest = vocab + 1024 if vocab < 1 << 19 else vocab
    for width in (1, 7, 300, *(width for width in WIDTHS if width < vocab), vocab - 1, vocab, vocab + 64, widest):
        if width > widest:
            continue
        for rows in (1, 2, 16, 33, 256, 257):
            for wider, start, dtype in ((0, 0, torch.float32), (1, 0, torch.float32), (5, 3, torch.float32)):
                logits = torch.empty(rows, width + wider, dtype=dtype)[:, start : start + width]
                for slots in ([0] * rows, torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.int64)):
                    given = isinstance(slots, list)
                    table = tables.measure(logits, None, slots, [0] * rows if given else torch.zeros(rows).long())
                    assert table is not None
                    table.tokens(logits, None, [0] * rows if given else Kept(known, known[0]))
    for dtype in (torch.bfloat16, torch.float16):  # another processor's
        logits = torch.zeros(2, vocab, dtype=dtype)
        table = tables.measure(logits, torch.tensor([1, 0], dtype=torch.int32), [0, 1], [0, 0])
        assert table is not None
        table.tokens(logits, None, [0, 0])
    assert [set(launched.variants) for launched in launches] == warm
    assert not logged()
    for _ in range(2):
        assert tables.measure(torch.empty(1, widest + 1), None, [0], [0]) is None
    (line,) = (record.getMessage() for record in logged())
    assert str(widest) in line
    assert [set(launched.variants) for launched in launches] == warm


@pytest.mark.parametrize(("rows", "steps"), [(1, 1000), (8, 1000), (64, 1000), (256, 1000), (1024, 250)])
def test_the_ring_holds_the_steps_that_wait_for_the_frame_thread(rows: int, steps: int) -> None:
    """It keeps them for up to half a second; a step of a small model takes one millisecond, of 1024 rows more."""
    tables = GpuTables(CPU, rows)
    assert len(tables._free) * min(tables._size // rows, gpu_tables._STEPS) >= steps
