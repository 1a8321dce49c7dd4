"""The V2 adapter against vLLM's own slots: each row's record is that of the request in its slot.

The slots, their free list and their buffers are vLLM's ``RequestState``. Its Triton kernels do not run here; the few
lines of them that count (staged writes, appending accepted tokens) are written out below.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from integration.harness.runners import RUNNERS
from integration.tests.engine.sink import SERVER, Sink

if "mrv2" not in RUNNERS:
    pytest.skip("this vLLM has no Model Runner V2 with logits processors", allow_module_level=True)

from vllm import SamplingParams
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.states import RequestState

from corevital.engines.vllm.runner_v2 import V2Adapter
from corevital.engines.vllm.stamps import EXTRA_ARG
from corevital.frames.stamp import Stamp

pytestmark = pytest.mark.usefixtures("tables")

VOCAB = 64
MAX_LEN = 96
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _plain_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's way where memory cannot be pinned."""
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)


@dataclass
class Request:
    """A request as the scheduler sees it."""

    key: int  # 0: not measured
    prompt: list[int]
    temperature: float = 1.0
    base: int = 0
    output: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose keys and values are in the cache

    @property
    def params(self) -> SamplingParams:
        stamp = {EXTRA_ARG: str(Stamp(SERVER, self.key, self.base))} if self.key else None
        return SamplingParams(temperature=self.temperature, extra_args=stamp)


class Runner:
    """The steps of a model runner around the real slots."""

    def __init__(self, sink: Sink, slots: int = 4, drafts: int = 0, reports: Any = lambda slot: True) -> None:
        self.states = RequestState(slots, MAX_LEN, 256, drafts, VOCAB, CPU)
        self.adapter = V2Adapter(sink.post, LogitsProcRequestState.from_request_state(self.states), reports)
        self.adapter.follow_removals()
        self.drafts = drafts
        self.running: dict[str, Request] = {}
        self.truth: dict[tuple[int, int], tuple[torch.Tensor, int]] = {}

    def remove(self, name: str) -> Request:
        self.states.remove_request(name)
        return self.running.pop(name)

    def add(self, name: str, request: Request) -> bool:
        known = request.prompt + request.output
        request.computed = 0
        self.states.add_request(name, len(request.prompt), known, 0, 50)
        self.running[name] = request
        return self.adapter.add_request(self.states.req_id_to_index[name], request.params)

    def write(self) -> None:
        """``apply_staged_writes``, the kernel's part in Python."""
        self.states.prompt_len.copy_to_uva()
        self.states.prefill_len.copy_to_uva()
        for tensor in (self.states.total_len, self.states.all_token_ids, self.states.num_computed_tokens):
            start = 0
            for index, at, end in zip(
                tensor._staged_write_indices,
                tensor._staged_write_starts,
                tensor._staged_write_cu_lens,
                strict=True,
            ):
                content = torch.tensor(tensor._staged_write_contents[start:end], dtype=tensor.dtype)
                tensor.gpu.reshape(tensor.num_rows, -1)[index, at : at + end - start] = content
                start = end
            tensor.clear_staged_writes()
        self.adapter.apply_staged_writes()

    def step(self, rng: random.Random, budget: int = 16) -> None:
        """One forward pass: a chunk of each prompt, or one token and its drafts; then sampling in place."""
        rows: list[tuple[str, int]] = []  # whose, at which position
        for name, request in rng.sample(list(self.running.items()), len(self.running)):
            known = len(request.prompt) + len(request.output)
            slot = self.states.req_id_to_index[name]
            if request.computed < int(self.states.prefill_len.np[slot]):
                request.computed = min(request.computed + budget, int(self.states.prefill_len.np[slot]))
                rows.append((name, request.computed - 1))
            else:
                rows += [(name, known - 1 + draft) for draft in range(1 + min(self.drafts, MAX_LEN - known))]
        if not rows:
            return
        slots = [self.states.req_id_to_index[name] for name, _ in rows]
        distinct = list(dict.fromkeys(slots))
        logits = torch.stack([self._logits(name, position) for name, position in rows])
        seen = logits.clone()
        context = LogitsContext(
            expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32),
            idx_mapping=torch.tensor(distinct, dtype=torch.int32),
            idx_mapping_np=np.array(distinct, np.int32),
            expanded_local_pos=torch.zeros(len(rows), dtype=torch.int32),
            input_ids=torch.zeros(len(rows), dtype=torch.int32),
            pos=torch.tensor([position for _, position in rows]),
            seq_lens_upper_bound_np=np.zeros(len(distinct), np.int32),
        )
        cut = rng.randint(0, len(rows))  # a large verification comes in parts
        for part in (slice(0, cut), slice(cut, None)):
            if len(logits[part]):
                fields = {name: getattr(context, name)[part] for name in ("expanded_idx_mapping", "pos")}
                self.adapter.apply(logits[part], LogitsContext(**{**vars(context), **fields}))
        assert torch.equal(logits, seen), "logits must never be modified"
        self._sample(rows, logits, seen, rng)

    def _logits(self, name: str, position: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((name, position, random.random())) % 2**31)
        return torch.randn(VOCAB, generator=generator) * 3

    def _sample(
        self, rows: Sequence[tuple[str, int]], logits: torch.Tensor, seen: torch.Tensor, rng: random.Random
    ) -> None:
        for name in dict.fromkeys(name for name, _ in rows):
            request, slot = self.running[name], self.states.req_id_to_index[name]
            mine = [row for row, (whose, _) in enumerate(rows) if whose == name]
            if rows[mine[0]][1] + 1 < int(self.states.prefill_len.np[slot]):
                continue  # in the middle of a prompt: the token is thrown away
            for row in mine[: rng.randint(1, len(mine))]:  # the drafts that are accepted, and one token more
                logits[row] /= request.temperature or 1.0
                token = int(torch.multinomial(logits[row].softmax(0), 1))
                logits[row][logits[row] < logits[row, token] - 5] = -torch.inf  # what top-k and top-p leave behind
                if request.key:
                    self.truth[request.key, request.base + len(request.output)] = (seen[row], token)
                request.output.append(token)
                total = int(self.states.total_len.gpu[slot])
                if total < MAX_LEN:
                    self.states.all_token_ids.gpu[slot, total] = token
                self.states.total_len.gpu[slot] = total + 1
            request.computed = len(request.prompt) + len(request.output) - 1

    def check(self, sink: Sink) -> None:
        """After a last settling: every token of a measured request has its row and its surprisal, and nothing more."""
        self.adapter.apply_staged_writes()
        assert sink.rows.keys() == self.truth.keys()
        assert sink.tokens.keys() == self.truth.keys()
        for at, (row, token) in self.truth.items():
            logprobs = row.double().log_softmax(0)
            assert sink.rows[at]["entropy"] == pytest.approx(float(-(logprobs.exp() * logprobs).sum()), abs=1e-5)
            assert sink.tokens[at][0] == token
            assert sink.tokens[at][1] == pytest.approx(float(logprobs[token]), abs=5e-6)


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_records_follow_their_request_through_slots_preemption_chunks_and_drafts(seed: int, drafts: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    sink = Sink()
    runner = Runner(sink, drafts=drafts)
    preempted: list[tuple[str, Request]] = []
    number = 0
    for _ in range(150):
        for name in rng.sample(list(runner.running), k=rng.choice([0, 0, 1, 2]) if len(runner.running) > 2 else 0):
            request = runner.remove(name)
            if rng.random() < 0.5 and len(request.prompt) + len(request.output) < 80:
                preempted.append((name, request))
        for name, request in list(runner.running.items()):
            if len(request.prompt) + len(request.output) > 80:
                runner.remove(name)
        while len(runner.running) < 4 and rng.random() < 0.8:  # a slot freed a moment ago is taken again
            if preempted and rng.random() < 0.6:
                name, request = preempted.pop(0)
            else:
                number += 1
                key = 0 if rng.random() < 0.2 else number
                prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))]
                name, request = f"r{number}", Request(key, prompt, rng.choice([0.0, 0.6, 1.0, 1.7]))
            assert runner.add(name, request) == (request.key > 0)
        runner.write()
        runner.step(rng)
    assert len(runner.truth) > 300
    runner.check(sink)
    assert (sink.rejected > 50) == (drafts > 0)


def test_the_last_position_of_the_context_is_not_read_beyond() -> None:
    sink = Sink()
    runner = Runner(sink)
    runner.add("r", Request(1, [1] * (MAX_LEN - 2)))
    rng = random.Random(0)
    for _ in range(2):
        runner.write()
        runner.step(rng, budget=MAX_LEN)
    runner.write()
    runner.step(rng)
    runner.adapter.apply_staged_writes()
    assert {index for _, index in sink.tokens} == {0, 1}


def test_more_input_to_a_session_goes_on_counting_where_its_output_stands() -> None:
    sink = Sink()
    runner = Runner(sink)
    rng = random.Random(0)
    first = Request(1, [1, 2, 3])
    runner.add("r", first)
    for _ in range(4):
        runner.write()
        runner.step(rng)
    runner.remove("r")
    runner.add("r", Request(1, [*first.prompt, *first.output[:-1], 7, 8], base=len(first.output)))
    for _ in range(3):
        runner.write()
        runner.step(rng)
    assert [index for _, index in sorted(runner.truth)] == list(range(7))
    runner.check(sink)


def test_a_rank_that_does_not_report_takes_the_same_path_and_sends_nothing() -> None:
    sink = Sink()
    runner = Runner(sink, reports=lambda slot: False)
    assert runner.add("r", Request(1, [1, 2, 3])) is True
    runner.write()
    runner.step(random.Random(0))
    runner.adapter.apply_staged_writes()
    assert sink.rows == sink.tokens == {}


def test_the_logits_of_a_step_are_released_before_the_next_forward_pass() -> None:
    runner = Runner(Sink())
    runner.add("r", Request(1, [1, 2, 3]))
    runner.write()
    runner.step(random.Random(0))
    assert runner.adapter._pending
    runner.write()
    assert not runner.adapter._pending


def test_an_error_in_our_code_leaves_no_old_owner_in_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")

    class Broken(Sink):
        def send(self, server: str, rows: Sequence[Any] = (), sampled: Sequence[Any] = ()) -> None:
            raise OSError("no way out")

    runner = Runner(Broken(), slots=1)
    assert runner.add("old", Request(1, [1, 2, 3])) is True
    runner.write()
    runner.step(random.Random(0))  # asserts that the logits are untouched
    runner.remove("old")
    assert runner.add("new", Request(0, [4])) is False
    assert runner.adapter._slots.snapshot().servers[0] is None
