"""What the engine core reports of its requests. ``Request`` is vLLM's own; the scheduler is a stand-in."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.v1.request import Request, RequestStatus

from corevital.engines.protocol import CoreHost
from corevital.engines.vllm.core import describe
from corevital.engines.vllm.core.watch import Watch
from corevital.engines.vllm.request_facts import accepted_drafts
from corevital.engines.vllm.stamps import EXTRA_ARG, carried
from corevital.frames import engine_key as keys
from corevital.frames.engine_key import engine_key
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital.frames.receiver import Receiver
from corevital.frames.stamp import Stamp, secret_of


class Hub:
    """Stands in for the hub process: records its calls."""

    def __init__(self) -> None:
        self.admitted: list[Admitted] = []
        self.finished: list[tuple[int, Finished]] = []
        self.sent_facts: list[tuple[Stamp, CoreFacts]] = []
        self.kinds: list[str] = []
        self.watched: list[tuple[Stamp, Callable[[], object]]] = []
        self.unmeasured = self.wants = self.drains = self.closes = 0

    def admit(self, request: Admitted) -> Stamp | None:
        self.admitted.append(request)
        return None if request.sample is False else Stamp("a" * 32, len(self.admitted))

    def finish(self, key: int, outcome: Finished) -> None:
        self.finished.append((key, outcome))

    def facts(self, stamp: Stamp, facts: CoreFacts) -> None:
        self.sent_facts.append((stamp, facts))

    def watch(self, stamp: Stamp, end: Callable[[], object]) -> None:
        self.watched.append((stamp, end))

    def unwatch(self, key: int) -> None:
        self.watched = [(stamp, end) for stamp, end in self.watched if stamp.key != key]

    def internal(self, kind: str) -> None:
        self.kinds.append(kind)

    def unobserved(self, sequences: int) -> None:
        self.unmeasured += sequences

    def want(self) -> None:
        self.wants += 1

    def drain(self, timeout_s: float) -> bool:
        self.drains += 1
        return True

    def close(self) -> None:
        self.closes += 1


class Scheduler:
    """Stands in for vLLM's: calls the watch as the wrapped methods do."""

    def __init__(self, hub: Hub, rank: int | None = None) -> None:
        self.requests: dict[str, Request] = {}
        self.now = 100.0
        parallel = SimpleNamespace(data_parallel_index=rank or 0, data_parallel_rank_local=rank)
        model = SimpleNamespace(served_model_name="tiny")
        config = SimpleNamespace(parallel_config=parallel, model_config=model)
        host = CoreHost(hub, content=False, hash_key=None)  # type: ignore[arg-type]
        self.watch = Watch(self, config, host, clock=lambda: self.now)

    def add(self, request: Request) -> Request:
        self.watch.adds(request)
        self.requests[request.request_id] = request
        return request

    def step(self, *new: Request, tokens: int = 1) -> None:
        for request in new:
            assert request.prefill_stats is not None
            request.prefill_stats.set(request.num_prompt_tokens, 1, 0)
        self.watch.scheduled(SimpleNamespace(scheduled_new_reqs=[SimpleNamespace(req_id=r.request_id) for r in new]))
        for request in self.requests.values():
            request.append_output_token_ids(list(range(tokens)))
        self.watch.updated()

    def end(self, request: Request, status: RequestStatus) -> None:
        request.status = status
        self.watch.frees(request)
        del self.requests[request.request_id]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    for name in (keys.HUB, keys.HUB_KEY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(keys.VARIABLE, "ab" * 32)
    return Hub()


def request(name: str = "cmpl-7-0123abcd", **params: Any) -> Request:
    sampling = SamplingParams(**{"max_tokens": 9, **params})
    return Request(name, [1, 2, 3], sampling, None, arrival_time=time.time())


def stamp_of(request: Request) -> Stamp | None:
    assert request.sampling_params is not None
    return carried(request.sampling_params)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (RequestStatus.FINISHED_STOPPED, "stop"),
        (RequestStatus.FINISHED_LENGTH_CAPPED, "length"),
        (RequestStatus.FINISHED_ABORTED, "abort"),
        (RequestStatus.FINISHED_ERROR, "error"),
    ],
)
def test_a_request_that_nobody_stamped_is_the_cores(hub: Hub, status: RequestStatus, reason: str) -> None:
    scheduler = Scheduler(hub)
    asked = scheduler.add(request(temperature=0.1 + 2**-30, extra_args={"corevital_tags": "a,b", "other": 1}))
    (admitted,) = hub.admitted
    assert (admitted.request_id, admitted.engine_id, admitted.operation) == (
        "cmpl-7",
        "cmpl-7-0123abcd",
        "text_completion",
    )
    assert (admitted.tags, admitted.prompt_tokens, admitted.max_tokens, admitted.temperature) == (("a", "b"), 3, 9, 0.1)
    assert (admitted.engine, admitted.runner, admitted.stage) == ("vllm", "v1", "raw")
    assert stamp_of(asked) == Stamp("a" * 32, 1)
    scheduler.now = 101.0
    scheduler.step(asked)
    scheduler.now = 103.0
    scheduler.step()
    scheduler.end(asked, status)
    ((key, outcome),) = hub.finished
    assert (key, outcome.reason, list(outcome.token_ids), outcome.cached_tokens) == (1, reason, [0, 0], 1)
    assert outcome.core == CoreFacts(
        queue_s=1.0, prefill_s=0.0, decode_s=2.0, preemptions=0, cached_tokens=1, cached_source="local"
    )
    assert outcome.first_chunk_s == pytest.approx(1.0, abs=0.5)
    assert not scheduler.watch._live
    assert not scheduler.watch._silent


def test_a_frontends_request_stays_its_own_and_gets_the_facts(hub: Hub) -> None:
    receiver = Receiver()
    try:
        stamp = Stamp(receiver.server, 5, secret=receiver.secret, proof=engine_key().proof(receiver.server))
        scheduler = Scheduler(hub, rank=1)
        asked = scheduler.add(request(extra_args={EXTRA_ARG: str(stamp)}))
        scheduler.step(asked)
        scheduler.end(asked, RequestStatus.FINISHED_STOPPED)
    finally:
        receiver.close()
    assert stamp_of(asked) == stamp
    assert hub.admitted == hub.finished == []
    ((of, facts),) = hub.sent_facts
    assert of == stamp
    assert (facts.data_parallel_rank, facts.queue_s) == (1, 0.0)


def test_what_a_frontend_leaves_out_stays_out(hub: Hub) -> None:
    server = "c" * 32
    out = Stamp(server, 0, proof=engine_key().proof(server))
    scheduler = Scheduler(hub)
    asked = scheduler.add(request(extra_args={EXTRA_ARG: str(out)}))
    scheduler.step(asked)
    scheduler.end(asked, RequestStatus.FINISHED_STOPPED)
    assert (hub.admitted, hub.finished, hub.sent_facts, hub.unmeasured) == ([], [], [], 0)
    found = stamp_of(asked)
    assert found is not None
    assert found.is_left_out


@pytest.mark.parametrize(
    "forged",
    [
        "c" * 32 + ":1",
        "c" * 32 + ":0",
        f"{'c' * 32}.{'d' * 64}:1",
        f"{'c' * 32}.{'d' * 64}~{'e' * 32}:1",
        f"{'c' * 32}~{'e' * 32}:0",
        ["x"],
        "",
    ],
)
def test_a_stamp_that_a_client_made_is_replaced(hub: Hub, forged: Any) -> None:
    asked = Scheduler(hub).add(request(extra_args={EXTRA_ARG: forged}))
    assert len(hub.admitted) == 1
    assert stamp_of(asked) == Stamp("a" * 32, 1)


@pytest.mark.parametrize("headless", [False, True])
def test_a_frontend_that_cannot_be_reached_is_logged(
    hub: Hub, headless: bool, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[Any]]
) -> None:
    server = "c" * 32  # nobody listens there
    proof = engine_key().proof(server) if not headless else "9" * 32  # of another host's key
    if headless:
        monkeypatch.setenv(keys.VARIABLE, "cd" * 32 + ":headless")
    scheduler = Scheduler(hub)
    for number in range(3):
        stamp = Stamp(server, 5, secret="d" * 64, proof=proof)
        asked = scheduler.add(request(f"cmpl-{number}-0123abcd", extra_args={EXTRA_ARG: str(stamp)}))
        assert stamp_of(asked) is None, "its worker does not try"
    assert (hub.admitted, hub.unmeasured) == ([], 3)
    (line,) = [record.getMessage() for record in logged()]
    assert "COREVITAL_HUB=tcp://HOST:PORT" in line
    assert hub.wants == (1 if headless else 0)


def test_with_a_hub_of_several_hosts_every_frontend_can_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.HUB, "tcp://192.0.2.1:5760")
    monkeypatch.setenv(keys.HUB_KEY, "a long shared secret")
    server = "c" * 32
    stamp = Stamp(server, 5, secret="d" * 64, proof=engine_key().proof(server))
    asked = Scheduler(hub).add(request(extra_args={EXTRA_ARG: str(stamp)}))
    assert stamp_of(asked) == stamp
    assert (hub.admitted, hub.unmeasured, hub.wants) == ([], 0, 1)


def test_a_frontends_request_stays_its_own_while_the_hub_process_restarts(hub: Hub) -> None:
    server = engine_key().hub.server  # nobody listens there now
    stamp = Stamp(server, 5, secret=engine_key().hub.secret, proof=engine_key().proof(server))
    asked = Scheduler(hub).add(request(extra_args={EXTRA_ARG: str(stamp)}))
    assert stamp_of(asked) == stamp
    assert (hub.admitted, hub.unmeasured) == ([], 0)


def test_requests_of_no_client_are_counted(hub: Hub) -> None:
    scheduler = Scheduler(hub)
    for name in ("cmpl-1-beam-3-0123abcd", "generative-scoring-9-0-0123abcd"):
        assert stamp_of(scheduler.add(request(name, max_tokens=1))) is None
    assert (hub.kinds, hub.admitted) == (["beam_search", "scoring"], [])


@pytest.mark.parametrize("name", ["cmpl-my-decision-1", "chatcmpl-x-beam-y", "decision-1", "x-beam-3"])
def test_a_client_may_choose_an_id_that_looks_like_one_of_vllms(hub: Hub, name: str) -> None:
    assert stamp_of(Scheduler(hub).add(request(f"{name}-0123abcd"))) is not None
    assert hub.kinds == []


def test_a_request_may_ask_not_to_be_measured_and_a_wrong_argument_stops_nothing(
    hub: Hub, logged: Callable[[], list[Any]]
) -> None:
    scheduler = Scheduler(hub)
    assert stamp_of(scheduler.add(request("a", extra_args={"corevital_sample": 0}))) is None
    assert stamp_of(scheduler.add(request("b", extra_args={"corevital_capture": "x"}))) is not None
    (line,) = [record.getMessage() for record in logged()]
    assert line.startswith("vllm_xargs: corevital_capture='x' is not allowed")


def test_a_core_that_shuts_down_ends_its_sequences_and_waits_for_their_reports(hub: Hub) -> None:
    scheduler = Scheduler(hub)
    scheduler.step(scheduler.add(request("a")))
    scheduler.watch.ends()
    scheduler.add(request("b"))
    with pytest.raises(ValueError, match="engine"):
        _fail(scheduler)
    assert [outcome.reason for _, outcome in hub.finished] == ["abort", "error"]
    assert (hub.drains, hub.closes) == (2, 2), "its thread and its connections end with the engine"


def test_a_stamp_of_a_client_is_gone_even_if_the_admission_fails(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COREVITAL_RAISE", raising=False)
    monkeypatch.setattr(hub, "admit", lambda request: 1 / 0)
    forged = str(Stamp("f1" * 16, 5, secret="d" * 64, proof="e" * 32))
    assert stamp_of(Scheduler(hub).add(request(extra_args={EXTRA_ARG: forged}))) is None
    assert secret_of("f1" * 16) is None


def test_clients_cannot_fill_the_memory_of_a_core_with_servers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.VARIABLE, "cd" * 32 + ":headless")
    monkeypatch.setattr("corevital.engines.vllm.core.watch.is_here", lambda server: False)
    scheduler = Scheduler(hub)
    for number in range(3000):
        forged = str(Stamp(f"{number:032x}", 5, secret="d" * 64, proof="e" * 32))
        scheduler.watch.adds(request(extra_args={EXTRA_ARG: forged}))
    assert len(scheduler.watch._seen) <= 1024


def _fail(scheduler: Scheduler) -> None:
    try:
        raise ValueError("the engine has failed")
    finally:
        scheduler.watch.ends()


@pytest.mark.parametrize(
    ("engine_id", "client"),
    [
        ("chatcmpl-mine-1-0820cf33", "chatcmpl-mine-1"),
        ("cmpl-9f442982d749621e-0-8dc3caa6", "cmpl-9f442982d749621e-0"),
        ("b5d3029c-89bb-4256-8fab-eb3d5029c89b", "b5d3029c-89bb-4256-8fab-eb3d5029c89b"),
        ("-8025fb69", "-8025fb69"),
        ("x", "x"),
    ],
)
def test_the_clients_id_is_the_engines_without_what_made_it_unique(engine_id: str, client: str) -> None:
    assert describe.client_id(engine_id) == client


def test_accepted_drafts_are_counted_where_vllm_keeps_them() -> None:
    assert accepted_drafts(SimpleNamespace()) is None
    metrics = SimpleNamespace(histogram=[4, 3, 2])
    assert accepted_drafts(SimpleNamespace(spec_decode_metrics=metrics)) == 7
