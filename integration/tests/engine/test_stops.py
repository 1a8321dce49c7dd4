"""Sequences that the scheduler ends early: vLLM's own schedulers, and for the details a stand-in with their methods."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from integration.harness.vllm_server import MODEL
from integration.tests.engine.test_core import Hub, hub, request  # noqa: F401
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler as SyncScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import FinishReason, Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from corevital.engines.protocol import CoreHost
from corevital.engines.vllm import nan_counts
from corevital.engines.vllm.core.stops import Stops
from corevital.engines.vllm.core.watch import Watch
from corevital.engines.vllm.stamps import EXTRA_ARG
from corevital.frames.receiver import Receiver
from corevital.frames.stamp import Stamp
from corevital_otel.measure.loop_check import LoopCheck

LOOP = [5, 6, 7, 8] * 40
OTHER = list(range(100, 260))


class Scheduler:
    """Stands in for vLLM's: takes in a step's tokens as it does."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.outputs: list[tuple[str, list[int], FinishReason | None, Any]] = []
        self.freed: Any = lambda request: None

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> None:
        for name, tokens in model_runner_output.tokens.items():
            request = self.requests.get(name)
            if request is None:
                continue
            new, stopped = self._update_request_with_output(request, list(tokens), is_stale=False)
            reason = request.get_finished_reason() if stopped else None
            if stopped:
                del self.requests[name]
                self.freed(request)
            self.outputs.append((name, new, reason, request.stop_reason))

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        request.append_output_token_ids(new_token_ids)
        stopped = request.num_output_tokens >= request.max_tokens
        if stopped:
            request.status = RequestStatus.FINISHED_LENGTH_CAPPED
        return new_token_ids, stopped

    def step(self, nans: dict[str, int] | None = None, **tokens: Sequence[int]) -> None:
        self.update_from_output(None, SimpleNamespace(tokens=tokens, num_nans_in_logits=nans))

    def run(self, name: str, tokens: Sequence[int]) -> int:
        """Tokens made of a sequence, one a step, until it ends."""
        for made, token in enumerate(tokens, 1):
            self.step(None, **{name: [token]})
            if name not in self.requests:
                return made
        return len(tokens)


class Scene:
    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.stops = Stops(self.scheduler, LoopCheck)
        self.scheduler.freed = lambda request: self.stops.drop(request.request_id)

    def add(self, name: str, *on: str, **params: Any) -> Request:
        found = request(name, **{"max_tokens": 150, **params})
        self.scheduler.requests[name] = found
        if on:
            self.stops.ask(name, on)
        return found


def test_without_a_request_that_asks_nothing_is_wrapped():
    scene = Scene()
    before = dict(vars(scene.scheduler))
    scene.add("a")
    assert scene.scheduler.run("a", LOOP) == 150
    assert vars(scene.scheduler) == before
    scene.add("b", "loop", "nan")
    assert {"update_from_output", "_update_request_with_output"} <= set(vars(scene.scheduler))
    scene.scheduler.run("b", LOOP)
    assert set(vars(scene.scheduler)) == set(before)


def test_a_loop_ends_with_its_reason_and_the_request_beside_it_runs_on():
    scene = Scene()
    for name in ("a", "b"):
        scene.add(name, *(["loop"] if name == "a" else []))
    ended = 0
    for made, token in enumerate(LOOP[:120], 1):
        scene.scheduler.step(a=[token], b=[token])
        if "a" not in scene.scheduler.requests and not ended:
            ended = made
    assert 52 <= ended <= 52 + 16
    assert ("a", [LOOP[ended - 1]], FinishReason.STOP, "corevital:loop") in scene.scheduler.outputs
    assert scene.scheduler.requests["b"].num_output_tokens == 120


def test_text_that_does_not_repeat_is_not_ended():
    scene = Scene()
    scene.add("a", "loop", "nan", "alarm")
    assert scene.scheduler.run("a", OTHER) == 150
    assert scene.scheduler.outputs[-1][2:] == (FinishReason.LENGTH, None)


def test_a_nan_ends_it_in_its_own_step_and_no_other_request():
    scene = Scene()
    scene.add("a", "nan")
    scene.add("b", "loop")
    scene.scheduler.step(a=[1], b=[1])
    scene.scheduler.step({"a": 3, "b": 3}, a=[2], b=[2])
    assert [output[2:] for output in scene.scheduler.outputs[2:]] == [
        (FinishReason.STOP, "corevital:nan"),
        (None, None),
    ]
    assert list(scene.scheduler.requests) == ["b"]


def test_a_chunk_of_a_prompt_without_tokens_ends_nothing():
    scene = Scene()
    scene.add("a", "nan")
    scene.scheduler.step({"a": 3})
    scene.scheduler.step({"a": 0}, a=[1])
    assert "a" in scene.scheduler.requests


def test_an_order_ends_it_with_its_next_token_and_one_for_a_request_that_has_ended_is_ignored():
    scene = Scene()
    scene.add("a", "alarm")
    scene.scheduler.step(a=[1])
    scene.stops.order("a", "alarm")
    scene.stops.order("gone", "alarm")
    assert "a" in scene.scheduler.requests
    scene.scheduler.step(a=[2])
    assert scene.scheduler.outputs[-1] == ("a", [2], FinishReason.STOP, "corevital:alarm")


def test_nothing_ends_before_the_least_tokens_that_the_client_asked_for():
    scene = Scene()
    scene.add("a", "nan", min_tokens=4)
    scene.scheduler.step({"a": 1}, a=[1])
    assert scene.scheduler.run("a", OTHER) == 3
    assert scene.scheduler.outputs[-1][3] == "corevital:nan"


def test_its_own_end_comes_first():
    scene = Scene()
    scene.add("a", "nan", max_tokens=2)
    scene.scheduler.step(a=[1])
    scene.scheduler.step({"a": 1}, a=[2])
    assert scene.scheduler.outputs[-1][2:] == (FinishReason.LENGTH, None)


def test_an_error_of_ours_ends_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COREVITAL_RAISE", raising=False)
    scene = Scene()
    scene.add("a", "loop")
    monkeypatch.setattr(LoopCheck, "looping", lambda *_: 1 / 0)
    assert scene.scheduler.run("a", LOOP) == 150


def test_what_is_wrapped_does_not_keep_the_scheduler():
    scene = Scene()
    scene.add("a", "loop")
    gone = weakref.ref(scene.scheduler)
    scene.scheduler.freed = None
    gc.disable()
    try:
        scene.scheduler = None
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("server", "own", "on"),
    [((), None, None), (("loop",), None, ("loop",)), (("loop",), "none", None), ((), "alarm, nan", ("nan", "alarm"))],
)
def test_a_requests_own_argument_replaces_the_servers_setting(
    hub: Hub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    server: tuple[str, ...],
    own: str | None,
    on: tuple[str, ...] | None,
):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(Stops, "ask", lambda self, name, wanted: asked.update({name: wanted}))
    parallel = SimpleNamespace(data_parallel_index=0, data_parallel_rank_local=None)
    config = SimpleNamespace(parallel_config=parallel, model_config=SimpleNamespace(served_model_name="tiny"))
    host = CoreHost(hub, content=False, hash_key=None, stop_on=server, loop_check=LoopCheck)  # type: ignore[arg-type]
    watch = Watch(Scheduler(), config, host)
    extra = {} if own is None else {"corevital_stop_on": own}
    watch.adds(request("cmpl-1-0123abcd", extra_args=dict(extra)))
    receiver = Receiver()
    stamp = Stamp(receiver.server, 5, secret=receiver.secret, proof=receiver.proof)
    watch.adds(request("cmpl-2-0123abcd", extra_args={**extra, EXTRA_ARG: str(stamp)}))
    receiver.close()
    left_out = Stamp(receiver.server, 0, secret=receiver.secret, proof=receiver.proof)
    watch.adds(request("cmpl-3-0123abcd", extra_args={**extra, EXTRA_ARG: str(left_out)}))
    assert asked == ({} if on is None else {"cmpl-1-0123abcd": on, "cmpl-2-0123abcd": on})


def test_the_worker_counts_nans_only_while_a_request_asks(monkeypatch: pytest.MonkeyPatch):
    from vllm import envs

    monkeypatch.delenv("VLLM_COMPUTE_NANS_IN_LOGITS", raising=False)
    monkeypatch.delenv("VLLM_RAISE_ON_LOGIT_NANS", raising=False)
    counting = nan_counts.Counting()
    assert not nan_counts.are_on()
    counting.set(False)
    assert not envs.VLLM_COMPUTE_NANS_IN_LOGITS
    counting.set(True)
    assert envs.VLLM_COMPUTE_NANS_IN_LOGITS
    counting.set(False)
    assert not envs.VLLM_COMPUTE_NANS_IN_LOGITS
    monkeypatch.setenv("VLLM_COMPUTE_NANS_IN_LOGITS", "1")
    assert nan_counts.are_on()


def scheduler_of(kind: type[Any]) -> Any:
    """One of vLLM's, for the demo model; no engine runs."""
    args = EngineArgs(
        str(MODEL), max_model_len=512, max_num_seqs=8, enforce_eager=True, enable_prefix_caching=False, dtype="float32"
    )
    config = args.create_engine_config()
    config.cache_config.num_gpu_blocks = 200
    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=16, dtype=torch.float32)
    return kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(200, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=16,
        hash_block_size=16,
        log_stats=True,
    )


@pytest.mark.engine
@pytest.mark.parametrize("kind", [SyncScheduler, AsyncScheduler])
def test_vllms_own_schedulers_end_them_as_at_a_stop_token(kind: type[Any]):
    scheduler = scheduler_of(kind)
    ahead = 2 if kind is AsyncScheduler else 1  # steps in flight
    stops = Stops(scheduler, LoopCheck)
    tokens = {"loop": LOOP, "looping": LOOP, "nan": OTHER, "alarm": OTHER, "well": OTHER}
    for name in tokens:
        scheduler.add_request(request(name, max_tokens=150, ignore_eos=True))
        if name in ("loop", "nan", "alarm"):
            stops.ask(name, [name])
    made, got = dict.fromkeys(tokens, 0), {name: list[int]() for name in tokens}
    ends: dict[str, tuple[Any, Any]] = {}
    flying: list[Any] = []
    for step in range(400):
        if step == 20:
            stops.order("alarm", "alarm")
        planned = scheduler.schedule()
        if planned.total_num_scheduled_tokens:
            flying.append(planned)
            if len(flying) < ahead:
                continue
        if not flying:
            break
        done = flying.pop(0)
        names = list(done.num_scheduled_tokens)
        sampled = [[tokens[name][made[name]]] for name in names]
        nans = {name: int(name == "nan" and made[name] == 10) for name in names}
        for name in names:
            made[name] += 1
        output = ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled, num_nans_in_logits=nans)
        for each in scheduler.update_from_output(done, output).values():
            for one in each.outputs:
                assert one.request_id not in ends, "nothing after its end"
                got[one.request_id] += one.new_token_ids
                if one.finish_reason is not None:
                    ends[one.request_id] = one.finish_reason, one.stop_reason
                    stops.drop(one.request_id)
    assert ends == {
        "loop": (FinishReason.STOP, "corevital:loop"),
        "looping": (FinishReason.LENGTH, None),
        "nan": (FinishReason.STOP, "corevital:nan"),
        "alarm": (FinishReason.STOP, "corevital:alarm"),
        "well": (FinishReason.LENGTH, None),
    }
    assert {name: len(found) for name, found in got.items() if name != "alarm"} == {
        "loop": 64, "looping": 150, "nan": 11, "well": 150,
    }  # fmt: skip
    assert all(found == list(tokens[name])[: len(found)] for name, found in got.items())
    assert scheduler.get_num_unfinished_requests() == 0
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 199, "all but vLLM's own"
    assert not {"update_from_output", "_update_request_with_output"} & set(vars(scheduler))
