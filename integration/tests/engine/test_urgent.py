"""Statistics that somebody waits for leave at the end of their sequence, and no others are hurried."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
from integration.harness.runners import RUNNERS
from integration.tests.engine import test_v1_batch as v1
from integration.tests.engine.sink import SERVER, Sink
from integration.tests.engine.test_frame_thread import Slow, sampled, step, wait_for
from vllm import SamplingParams

from corevital.engines.vllm.runner_v1 import V1Adapter
from corevital.engines.vllm.stamps import carry
from corevital.frames.stamp import Stamp
from corevital.steps.frame_thread import FrameThread
from corevital.steps.recorder import Recorder

pytestmark = pytest.mark.usefixtures("tables")


def urgent(params: SamplingParams, key: int) -> SamplingParams:
    carry(params, Stamp(SERVER, key, urgent=True))
    return params


def test_under_v1_the_end_of_an_urgent_request_hurries_also_without_a_next_step() -> None:
    hurries: list[int] = []
    adapter = V1Adapter(Recorder(Sink().post, hurry=lambda: hurries.append(1)))
    batch, requests = v1.make_batch(adapter), {}
    for key in (1, 2, 3):
        request = v1.make_request(key)
        if key > 1:
            urgent(request.sampling_params, key)
        requests[request.req_id] = request
        batch.add_request(request)
    v1.step(batch, adapter, requests)
    v1.step(batch, adapter, requests)
    assert hurries == []
    for count, (req_id, is_urgent) in enumerate(zip(list(requests), (False, True, True), strict=True)):
        batch.remove_request(req_id)
        batch.condense()
        batch.refresh_metadata()  # an engine without a request left runs a step without rows
        assert len(hurries) == (count if is_urgent else 0)


@pytest.mark.skipif("mrv2" not in RUNNERS, reason="this vLLM has no Model Runner V2 with logits processors")
def test_under_v2_the_end_of_an_urgent_request_hurries_also_without_a_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from integration.tests.engine import test_v2_slots as v2

    monkeypatch.setattr("vllm.v1.worker.gpu.buffer_utils.is_uva_available", lambda: False)
    hurries: list[int] = []
    runner = v2.Runner(Sink())
    runner.adapter._recorder.hurry = lambda: hurries.append(1)
    monkeypatch.setattr(v2.Request, "params", property(lambda self: urgent(SamplingParams(), self.key)))
    rng = random.Random(0)

    def turn() -> int:
        before = len(hurries)
        runner.write()
        runner.step(rng)
        return len(hurries) - before

    for name, key in (("a", 1), ("b", 2)):
        runner.add(name, v2.Request(key, [1, 2, 3]))
    runner.step(rng)
    hurries.clear()
    assert [turn(), turn()] == [0, 0]
    runner.remove("a")
    assert turn() == 1, "the other one runs on"
    assert turn() == 0
    runner.remove("b")
    assert turn() == 1, "a step without rows"
    assert turn() == 0
    runner.add("c", v2.Request(3, [1]))
    assert [turn(), turn()] == [0, 0]
    runner.remove("c")
    runner.add("d", v2.Request(4, [1]))
    assert turn() == 1, "the slot has a new owner"


def test_an_adapter_whose_worker_is_gone_keeps_none_of_its_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    from integration.tests.engine import test_v2_slots as v2

    monkeypatch.setattr("vllm.v1.worker.gpu.buffer_utils.is_uva_available", lambda: False)
    runner = v2.Runner(Sink())
    tokens = weakref.ref(runner.states.all_token_ids)
    del runner
    gc.collect()
    assert tokens() is None


def test_the_frame_thread_sends_at_once_when_it_is_hurried() -> None:
    sender = Slow()
    thread = FrameThread(sender)
    thread.hurry()  # nothing waits: it leads to no turn
    for index in range(3):
        thread.post(made := step(index))
        if index < 2:  # the last token is known with the next step, and there is none
            thread.post(sampled(made, [7]))
    thread.hurry()
    wait_for(sender, 3, within_s=0.2)
    assert sender.sent == [0, 1, 2]
    thread.close()
