"""The V1 adapter against vLLM's own batch bookkeeping: each row's record is that of the request in it."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from integration.tests.engine.sink import SERVER, Sink
from vllm import SamplingParams, envs
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from corevital.engines.vllm.runner_v1 import V1Adapter
from corevital.engines.vllm.stamps import EXTRA_ARG
from corevital.frames.stamp import Stamp
from corevital.steps import recorder

pytestmark = pytest.mark.usefixtures("tables")

VOCAB = 64


class Processor:
    """The one processor of the batch: the adapter under test, in the shape vLLM calls."""

    def __init__(self, adapter: V1Adapter) -> None:
        self.adapter = adapter

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, update: Any) -> None:
        self.adapter.update_state(update)


def make_batch(adapter: V1Adapter, size: int = 8) -> InputBatch:
    older = {"kernel_block_sizes": [16]} if "kernel_block_sizes" in inspect.signature(InputBatch).parameters else {}
    return InputBatch(
        **older,
        max_num_reqs=size,
        max_model_len=512,
        max_num_batched_tokens=512,
        device=torch.device("cpu"),
        vocab_size=VOCAB,
        block_sizes=[16],
        max_num_blocks_per_req=[32],
        logitsprocs=LogitsProcessors([Processor(adapter)]),
        logitsprocs_need_output_token_ids=True,
    )


def make_request(key: int, output: list[int] | None = None, **params: Any) -> CachedRequestState:
    stamped = SamplingParams(**params, extra_args={EXTRA_ARG: str(Stamp(SERVER, key))} if key else None)
    return CachedRequestState(
        req_id=f"r{key}-{id(stamped)}",
        prompt_token_ids=[1, 2, 3],
        mm_features=[],
        sampling_params=stamped,
        generator=None,
        block_ids=([0],),
        num_computed_tokens=0,
        output_token_ids=[] if output is None else output,
    )


def logits_of(requests: list[CachedRequestState]) -> torch.Tensor:
    """Logits that depend on their request and index, so that a mixed-up row is found."""
    generator = torch.Generator()
    rows = []
    for request in requests:
        generator.manual_seed(hash((request.req_id, len(request.output_token_ids))) % 2**31)
        rows.append(torch.randn(VOCAB, generator=generator) * 3)
    return torch.stack(rows)


def step(
    batch: InputBatch,
    adapter: V1Adapter,
    requests: dict[str, CachedRequestState],
    discarded: frozenset[str] = frozenset(),
) -> dict[tuple[str, int], tuple[torch.Tensor, int]]:
    """One engine step: update, forward, apply, sample in place as vLLM's sampler does, append tokens."""
    batch.refresh_metadata()
    running = [requests[req_id] for req_id in batch.req_ids]
    logits = logits_of(running)
    seen = logits.clone()
    adapter.apply(logits)
    assert torch.equal(logits, seen), "logits must never be modified"
    truth = {}
    for row, request in enumerate(running):
        temperature = request.sampling_params.temperature
        logits[row] /= temperature if temperature >= 1e-5 else 1.0
        token = int(torch.multinomial(logits[row].softmax(0), 1))
        logits[row][logits[row] < logits[row, token] - 5] = -torch.inf  # what top-k and top-p leave behind
        if request.req_id not in discarded:
            truth[request.req_id, len(request.output_token_ids)] = (seen[row], token)
            request.output_token_ids.append(token)
    return truth


@pytest.mark.parametrize("seed", range(5))
def test_records_follow_their_request_through_adds_removes_swaps_and_moves(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    sink = Sink()
    adapter = V1Adapter(sink.post)
    batch, keys = make_batch(adapter), {}
    requests: dict[str, CachedRequestState] = {}
    truth: dict[Any, Any] = {}
    preempted: list[CachedRequestState] = []
    next_key = 0
    for _ in range(120):
        for req_id in rng.sample(list(batch.req_ids), k=rng.choice([0, 0, 0, 1, 2]) if batch.num_reqs > 2 else 0):
            batch.remove_request(req_id)
            request = requests.pop(req_id)
            if rng.random() < 0.3:
                preempted.append(request)
        while len(requests) < 8 and rng.random() < 0.5:
            if preempted and rng.random() < 0.5:
                request = preempted.pop()
            else:
                next_key += 1
                unmeasured = rng.random() < 0.2
                request = make_request(0 if unmeasured else next_key, temperature=rng.choice([0.0, 0.5, 1.0, 1.7]))
                if not unmeasured:
                    keys[request.req_id] = next_key
            requests[request.req_id] = request
            batch.add_request(request)
        batch.condense()
        if batch.num_reqs >= 2 and rng.random() < 0.3:
            batch.swap_states(*rng.sample(range(batch.num_reqs), 2))
        if batch.num_reqs:
            truth |= step(batch, adapter, requests)
    for req_id in list(batch.req_ids):
        batch.remove_request(req_id)
    batch.condense()
    batch.refresh_metadata()  # the update of size 0 that follows the last request

    measured = {(keys[req_id], index): value for (req_id, index), value in truth.items() if req_id in keys}
    assert len(measured) > 200
    assert sink.rows.keys() == measured.keys()
    assert sink.tokens.keys() == measured.keys(), "the last token of each request is among them"
    for at, (row, token) in measured.items():
        logprobs = row.double().log_softmax(0)
        assert sink.rows[at]["entropy"] == pytest.approx(float(-(logprobs.exp() * logprobs).sum()), abs=1e-5)
        assert sink.tokens[at][0] == token
        assert sink.tokens[at][1] == pytest.approx(float(logprobs[token]), abs=5e-6)


def test_a_chunk_of_a_prompt_leaves_no_token_and_its_row_is_replaced() -> None:
    sink = Sink()
    adapter = V1Adapter(sink.post)
    batch = make_batch(adapter)
    request = make_request(7, temperature=0.0)
    batch.add_request(request)
    requests = {request.req_id: request}
    for _ in range(3):
        assert step(batch, adapter, requests, discarded=frozenset([request.req_id])) == {}
    assert sink.tokens == {}
    truth = step(batch, adapter, requests)
    batch.remove_request(request.req_id)
    batch.condense()
    batch.refresh_metadata()
    assert list(sink.rows) == [(7, 0)]
    assert sink.tokens[7, 0][0] == truth[request.req_id, 0][1]


def test_placeholders_of_asynchronous_scheduling_are_waited_for() -> None:
    sink = Sink()
    adapter = V1Adapter(sink.post)
    batch = make_batch(adapter)
    request = make_request(9, temperature=1.0)
    batch.add_request(request)
    requests = {request.req_id: request}
    ((_, token),) = step(batch, adapter, requests).values()
    request.output_token_ids[-1] = -1
    batch.refresh_metadata()
    assert sink.tokens == {}, "the token is not known yet"
    request.output_token_ids[-1] = token  # vLLM repairs the list just before apply()
    adapter.apply(logits_of([request]))
    assert sink.tokens[9, 0][0] == token


def test_a_request_that_left_does_not_take_the_others_tokens_along() -> None:
    sink = Sink()
    adapter = V1Adapter(sink.post)
    batch = make_batch(adapter)
    leaving, staying = make_request(1, temperature=1.0), make_request(2, temperature=1.0)
    requests = {request.req_id: request for request in (leaving, staying)}
    for request in requests.values():
        batch.add_request(request)
    truth = step(batch, adapter, requests)
    leaving.output_token_ids[-1] = -1  # and no later step will repair it
    batch.remove_request(leaving.req_id)
    batch.condense()
    batch.refresh_metadata()
    adapter.apply(logits_of([staying]))
    assert sink.tokens.keys() == {(2, 0)}
    assert sink.tokens[2, 0][0] == truth[staying.req_id, 0][1]


def test_a_penalised_row_withholds_the_value_it_cannot_know() -> None:
    sink = Sink()
    adapter = V1Adapter(sink.post)
    batch = make_batch(adapter)
    request = make_request(3, temperature=0.0, repetition_penalty=1.5)
    batch.add_request(request)
    ((_, token),) = step(batch, adapter, {request.req_id: request}).values()
    batch.refresh_metadata()
    assert sink.tokens[3, 0][0] == token
    assert sink.sent[3, 0] != sink.sent[3, 0], "NaN: the frontend looks it up in the row's table"


def test_a_row_that_another_processor_copied_is_not_trusted() -> None:
    sink = Sink()
    adapter = V1Adapter(sink.post)
    batch = make_batch(adapter)
    request = make_request(4, temperature=0.5)
    batch.add_request(request)
    batch.refresh_metadata()
    logits = logits_of([request])
    adapter.apply(logits)  # and now the sampler works on a copy: `logits` is never divided by the temperature
    request.output_token_ids.append(int(logits.argmin()))  # which is not in the row's table
    batch.refresh_metadata()
    assert sink.sent[4, 0] != sink.sent[4, 0]


def test_after_a_fault_in_following_the_batch_nobody_is_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")
    sink = Sink()
    adapter = V1Adapter(sink.post)
    batch = make_batch(adapter)
    first = make_request(1, temperature=1.0)
    batch.add_request(first)
    requests = {first.req_id: first}
    step(batch, adapter, requests)
    batch.remove_request(first.req_id)
    broken, unmeasured = make_request(2, temperature=1.0), make_request(0, temperature=1.0)
    broken.sampling_params.extra_args = 7
    requests = {request.req_id: request for request in (unmeasured, broken)}
    for request in requests.values():
        batch.add_request(request)
    batch.condense()
    step(batch, adapter, requests)
    assert {key for key, _ in sink.rows} == {1}
    assert sink.rows.keys() == {(1, 0)}


def test_logits_beyond_what_may_be_kept_leave_the_surprisal_to_the_table(
    tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MOST_KEPT_BYTES", VOCAB * 4)
    sink = Sink()
    adapter = V1Adapter(sink.post)
    batch = make_batch(adapter)
    requests = {request.req_id: request for request in (make_request(1), make_request(2))}
    batch.add_request(next(iter(requests.values())))
    truth = step(batch, adapter, dict(list(requests.items())[:1]))
    batch.add_request(list(requests.values())[1])
    truth |= step(batch, adapter, requests)
    batch.refresh_metadata()
    assert {at: token for at, (token, _) in sink.tokens.items()} == {
        (int(req_id[1]), index): token for (req_id, index), (_, token) in truth.items()
    }
    known = {at for at, logprob in sink.sent.items() if not math.isnan(logprob)}
    assert known <= {(1, 0)}, "one row is kept, two are not"
    assert known or tables == "host"  # there it is not read where the row's table says as much


def test_an_error_in_our_code_leaves_logits_and_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")

    class Broken(Sink):
        def send(self, server: str, rows: Sequence[Any] = (), sampled: Sequence[Any] = ()) -> None:
            raise OSError("no way out")

    adapter = V1Adapter(Broken().post)
    batch = make_batch(adapter)
    request = make_request(5, temperature=1.0)
    batch.add_request(request)
    for _ in range(3):
        step(batch, adapter, {request.req_id: request})  # asserts that the logits are untouched
    assert len(request.output_token_ids) == 3


def test_nans_are_counted_while_the_batch_has_a_request_that_ends_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_COMPUTE_NANS_IN_LOGITS", "VLLM_RAISE_ON_LOGIT_NANS"):
        monkeypatch.delenv(name, raising=False)
    adapter = V1Adapter(Sink().post)
    batch, requests, seen = make_batch(adapter), {}, []
    for key, on in ((1, None), (2, "loop"), (3, "nan,loop")):
        request = make_request(key)
        if on is not None:
            request.sampling_params.extra_args["corevital_stop_on"] = on
        requests[request.req_id] = request
        batch.add_request(request)
        step(batch, adapter, requests)
        seen.append(envs.VLLM_COMPUTE_NANS_IN_LOGITS)
    for req_id in list(requests)[::-1]:
        batch.remove_request(req_id)
        del requests[req_id]
        batch.condense()
        batch.refresh_metadata()
        seen.append(envs.VLLM_COMPUTE_NANS_IN_LOGITS)
    assert seen == [False, False, True, False, False, False]
