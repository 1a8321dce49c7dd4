"""What the frontend hands to the engine, on vLLM's own ``OutputProcessor``."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason, output_processor
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import IterationStats

from corevital.engines.prompt_hash import prompt_hash
from corevital.engines.vllm import calls, own_tracing
from corevital.engines.vllm.frontend import attach
from corevital.engines.vllm.stamps import EXTRA_ARG
from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.stamp import Stamp

FORGED = f"{'f' * 32}:1"
LEFT_OUT = str(Stamp("0" * 32, 0))


class Observer:
    """Draws every second sequence."""

    def __init__(self, draw: bool = True) -> None:
        self.draw = draw
        self.admitted: list[Admitted] = []
        self.finished: list[tuple[int, Finished]] = []
        self.drained: list[float] = []
        self.left_out = Stamp("0" * 32, 0)
        self.internals: list[str] = []

    def admit(self, request: Admitted) -> Stamp | None:
        self.admitted.append(request)
        return Stamp("0" * 32, len(self.admitted)) if self.draw else None

    def finish(self, key: int, outcome: Finished) -> None:
        self.finished.append((key, outcome))

    def internal(self, kind: str) -> None:
        self.internals.append(kind)

    def unobserved(self, sequences: int) -> None:
        raise AssertionError("nothing is unobserved here")

    def drain(self, timeout_s: float) -> bool:
        self.drained.append(timeout_s)
        return True

    @property
    def reasons(self) -> list[str]:
        return [outcome.reason for _, outcome in self.finished]


def configuration() -> SimpleNamespace:
    parallel = SimpleNamespace(nnodes=1)
    return SimpleNamespace(model_config=SimpleNamespace(served_model_name="tiny"), parallel_config=parallel)


def frontend(observer: Observer, log_stats: bool = False, **wanted: Any) -> OutputProcessor:
    processor = OutputProcessor(None, log_stats=log_stats)
    assert attach(SimpleNamespace(output_processor=processor), configuration(), observer, **wanted)
    return processor


def output(name: str, tokens: list[int], reason: FinishReason | None = None) -> EngineCoreOutput:
    return EngineCoreOutput(request_id=name, new_token_ids=tokens, finish_reason=reason)


def request(name: str, params: SamplingParams | None = None, **fields: Any) -> EngineCoreRequest:
    params = params or SamplingParams(output_kind=RequestOutputKind.DELTA, detokenize=False)
    known: dict[str, Any] = {
        "mm_features": None,
        "eos_token_id": None,
        "pooling_params": None,
        "lora_request": None,
        "cache_salt": None,
    }
    known |= {"request_id": name, "external_req_id": name, "prompt_token_ids": [1, 2, 3], "sampling_params": params}
    known |= {"arrival_time": 0.0, "data_parallel_rank": None, **fields}
    return EngineCoreRequest(
        **{key: value for key, value in known.items() if key in EngineCoreRequest.__struct_fields__}
    )


def stamp_of(sent: EngineCoreRequest) -> object:
    assert sent.sampling_params is not None
    return (sent.sampling_params.extra_args or {}).get(EXTRA_ARG)


def test_params_that_requests_share_are_stamped_apart_and_left_as_they_were() -> None:
    shared = SamplingParams(extra_args={"mine": 1}, detokenize=False)
    processor, sent = frontend(Observer()), [request(name, shared) for name in "ab"]
    for each in sent:
        processor.add_request(each, None)
    assert [stamp_of(each) for each in sent] == [f"{'0' * 32}:1", f"{'0' * 32}:2"]
    assert shared.extra_args == {"mine": 1}


@pytest.mark.parametrize("draw", [True, False])
def test_a_forged_stamp_never_reaches_the_engine(draw: bool) -> None:
    forged = request("a", SamplingParams(extra_args={EXTRA_ARG: FORGED}, detokenize=False))
    frontend(Observer(draw)).add_request(forged, None)
    assert stamp_of(forged) == (f"{'0' * 32}:1" if draw else LEFT_OUT)


def test_a_forged_stamp_does_not_survive_an_error_in_our_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Observer):
        def admit(self, request: Admitted) -> Stamp | None:
            raise RuntimeError("no")

    monkeypatch.setenv("COREVITAL_RAISE", "0")
    forged = request("a", SamplingParams(extra_args={EXTRA_ARG: FORGED}, detokenize=False))
    frontend(Broken()).add_request(forged, None)
    assert stamp_of(forged) == LEFT_OUT


@pytest.mark.parametrize("draw", [True, False])
def test_a_session_is_drawn_once_however_often_input_comes(draw: bool) -> None:
    if "resumable" not in EngineCoreRequest.__struct_fields__:
        pytest.skip("this vLLM has no streaming input")
    observer = Observer(draw)
    processor = frontend(observer)
    for _ in range(2):
        processor.add_request(request("s", resumable=True), None)
        state = processor.request_states["s"]
        state.input_chunk_queue = None  # what came has been answered
    end = request("s", resumable=False)
    processor.add_request(end, None)
    assert len(observer.admitted) == 1
    assert [outcome.reason for _, outcome in observer.finished] == (["stop"] if draw else [])
    assert stamp_of(end) == LEFT_OUT


def test_what_a_request_asked_for_is_reported() -> None:
    observer = Observer()
    asked = SamplingParams(
        frequency_penalty=0.5,
        presence_penalty=-0.25,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=StructuredOutputsParams(json={"type": "object"}),
        detokenize=False,
    )
    processor = frontend(observer)
    processor.add_request(request("a", asked), None)
    plain = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False)
    processor.add_request(request("b", plain), None)
    first, second = observer.admitted
    assert (first.frequency_penalty, first.presence_penalty) == (0.5, -0.25)
    assert (first.stream, first.output_type, first.choices) == (True, "json", 1)
    assert (second.stream, second.output_type) == (False, "text")


def test_no_text_is_handed_on_unless_asked_for() -> None:
    observer = Observer()
    processor = frontend(observer)
    processor.add_request(request("a", SamplingParams(stop=["a secret"])), "a secret")
    assert (observer.admitted[0].prompt_text, observer.admitted[0].prompt_hash) == (None, None)
    assert observer.admitted[0].stop_sequences == ()
    processor.abort_requests(["a"], True)
    assert [outcome.text for _, outcome in observer.finished] == [None]
    told = Observer()
    frontend(told, content=True).add_request(request("a", SamplingParams(stop=["END", "\n\n"])), "a secret")
    assert told.admitted[0].prompt_text == "a secret"
    assert told.admitted[0].stop_sequences == ("END", "\n\n")


def test_a_hash_shows_equal_prompts_and_nothing_without_the_key() -> None:
    hashes = []
    for key, tokens in (("k", [1, 2, 3]), ("k", [1, 2, 3]), ("k", [1, 2, 4]), ("other", [1, 2, 3]), (None, [1])):
        observer = Observer()
        frontend(observer, hash_key=key).add_request(request("a", prompt_token_ids=tokens), None)
        hashes.append(observer.admitted[0].prompt_hash)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4
    assert hashes[4] is None


def test_vllms_own_spans_leave_the_tokens_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def maker(span_name: str, start_time: int, attributes: dict[str, Any] | None = None, **_: Any) -> None:
        made.append(attributes or {})

    monkeypatch.setattr(output_processor, "instrument_manual", maker)
    own_tracing.leave_tokens_to_us()
    own_tracing.leave_tokens_to_us()
    stats = SimpleNamespace(**dict.fromkeys(("arrival_time", "scheduled_ts", "queued_ts", "first_token_ts",
                            "last_token_ts", "first_token_latency", "num_generation_tokens"), 1.0))  # fmt: skip
    state = SimpleNamespace(stats=stats, prompt_token_ids=[1], prompt_embeds=None, external_req_id="a", top_p=1.0,
                            max_tokens_param=3, temperature=1.0, n=1)  # fmt: skip
    output_processor.OutputProcessor.do_tracing(
        OutputProcessor(None, log_stats=False),
        SimpleNamespace(trace_headers=None),
        state,
        SimpleNamespace(iteration_timestamp=2.0),
    )
    (attributes,) = made
    assert attributes["gen_ai.request.max_tokens"] == 3
    assert not [name for name in attributes if name.startswith("gen_ai.usage.")]


def test_a_vllm_that_makes_its_spans_in_another_way_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    monkeypatch.delattr(output_processor, "instrument_manual")
    own_tracing.leave_tokens_to_us()
    own_tracing.leave_tokens_to_us()
    (line,) = [record.message for record in logged() if "makes its spans" in record.message]
    assert "--otlp-traces-endpoint" in line


class Core:
    """Stands in for the client of the engine's core: hands over what a test sets."""

    def __init__(self) -> None:
        self.fails: BaseException | None = None

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails

    def add_request(self, request: EngineCoreRequest) -> None:
        if self.fails is not None:
            raise self.fails


class Engine:
    """Stands in for ``AsyncLLM`` and ``LLMEngine``."""

    def __init__(self) -> None:
        self.output_processor = OutputProcessor(None, log_stats=False)
        self.engine_core = Core()
        self.stopped = 0
        self.fails: Exception | None = None

    def shutdown(self, timeout: float | None = None) -> None:
        self.stopped += 1

    def step(self) -> None:
        if self.fails is not None:
            raise self.fails


def followed(observer: Observer) -> Engine:
    engine = Engine()
    assert attach(engine, configuration(), observer)
    return engine


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "error"),
        (EngineDeadError(), "error"),
        (asyncio.CancelledError(), "abort"),
        (KeyboardInterrupt(), "abort"),
    ],
)
@pytest.mark.parametrize("how", ["async", "sync"])
def test_a_request_that_cannot_be_handed_over_ends_at_once(error: BaseException, reason: str, how: str) -> None:
    observer = Observer()
    engine = followed(observer)
    core = engine.engine_core
    a, b = request("a"), request("b")
    for sent in (a, b):
        engine.output_processor.add_request(sent, None)

    def hand_over(sent: EngineCoreRequest) -> None:
        asyncio.run(core.add_request_async(sent)) if how == "async" else core.add_request(sent)

    hand_over(a)
    core.fails = error
    for _ in range(2):
        with pytest.raises(type(error)):
            hand_over(b)
    assert observer.reasons == [reason], "once, and only the one"
    engine.output_processor.abort_requests(["a", "b"], True)
    assert observer.reasons == [reason, "abort"]
    assert list(observer.finished[0][1].token_ids) == []


@pytest.mark.parametrize("finish", [FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT, FinishReason.ERROR])
def test_an_end_without_a_token_is_an_end(finish: FinishReason) -> None:
    observer = Observer()
    processor = frontend(observer)
    processor.add_request(request("a"), None, None, 0, SimpleNamespace(put=lambda output: None))
    processor.process_outputs([output("a", [], finish)])
    assert observer.reasons == [str(finish)]
    assert observer.finished[0][1].first_chunk_s is None


def test_what_vllm_drops_in_another_way_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    observer = Observer()
    processor = frontend(observer)
    processor.add_request(request("a"), None, None, 0, SimpleNamespace(put=lambda output: None))
    monkeypatch.setattr(processor, "_update_stats_from_finished", lambda *_: None)  # as if this vLLM had none
    processor.process_outputs([output("a", [5], FinishReason.STOP)])
    assert observer.reasons == ["error"]


def test_an_engine_that_dies_offline_ends_what_it_had() -> None:
    observer = Observer()
    engine = followed(observer)
    engine.output_processor.add_request(request("a"), None)
    engine.fails = RuntimeError("theirs")
    with pytest.raises(RuntimeError):
        engine.step()
    assert observer.reasons == []
    engine.fails = EngineDeadError()
    with pytest.raises(EngineDeadError):
        engine.step()
    assert observer.reasons == ["error"]


def test_an_engine_that_dies_ends_what_it_had() -> None:
    observer = Observer()
    processor = frontend(observer)
    for name in "ab":
        processor.add_request(request(name), None, None, 0, _queue())
    processor.process_outputs([output("a", [7])])
    processor.propagate_error(EngineDeadError())
    ended = [(outcome.reason, list(outcome.token_ids)) for _, outcome in observer.finished]
    assert ended == [("error", [7]), ("error", [])]
    processor.abort_requests(["a", "b"], True)
    assert len(observer.finished) == 2


def test_an_engine_that_is_shut_down_waits_for_the_last_statistics_first() -> None:
    observer = Observer()
    engine = followed(observer)
    engine.shutdown(timeout=3)
    assert (len(observer.drained), engine.stopped) == (1, 1)
    assert observer.drained[0] < 2
    Engine().shutdown()
    assert len(observer.drained) == 1, "another engine of the same class"


def test_an_engine_that_nobody_holds_ends_at_once() -> None:
    gc.disable()
    try:
        engine = followed(Observer())
        gone: list[weakref.ref[Any]] = [weakref.ref(engine), weakref.ref(engine.engine_core)]
        del engine
        assert [ref() for ref in gone] == [None, None], "without the garbage collector"
    finally:
        gc.enable()


def test_the_first_token_is_timed_where_vllm_keeps_no_statistics() -> None:
    observer = Observer()
    processor = frontend(observer)
    for name, age in (("a", 5.0), ("b", 0.0), ("future", -100.0)):
        processor.add_request(request(name, arrival_time=time.time() - age), None, None, 0, _queue())
    processor.process_outputs([output("a", []), output("b", [1]), output("stranger", [1])])
    time.sleep(0.05)
    processor.process_outputs([output("a", [1], FinishReason.STOP), output("b", [2], FinishReason.STOP)])
    processor.process_outputs([output("future", [1], FinishReason.STOP)])
    (_, a), (_, b), (_, future) = observer.finished
    assert a.first_chunk_s is not None
    assert b.first_chunk_s is not None
    assert future.first_chunk_s is not None
    assert 5.05 <= a.first_chunk_s < 10
    assert 0 < b.first_chunk_s < 5
    assert 0 < future.first_chunk_s < 10, "an arrival in the future is one now"


def test_with_statistics_the_time_is_vllms() -> None:
    observer = Observer()
    processor = frontend(observer, log_stats=True)
    processor.add_request(request("a", arrival_time=time.time() - 5), None, None, 0, _queue())
    state, stats = processor.request_states["a"], IterationStats()
    processor.process_outputs([output("a", [1])], time.monotonic(), stats)
    state.stats.first_token_latency = 1.25
    processor.process_outputs([output("a", [2], FinishReason.STOP)], time.monotonic(), IterationStats())
    assert [outcome.first_chunk_s for _, outcome in observer.finished] == [1.25]


def _queue() -> SimpleNamespace:
    return SimpleNamespace(put=lambda output: None)


def test_steps_of_a_search_are_not_requests_and_are_left_out() -> None:
    observer = Observer()
    processor, step = frontend(observer), request("a", SamplingParams(extra_args={EXTRA_ARG: FORGED}, max_tokens=1))
    token = calls._inner.set("beam_search")
    try:
        processor.add_request(step, None, None, 0, _queue())
    finally:
        calls._inner.reset(token)
    processor.process_outputs([output("a", [1], FinishReason.LENGTH)])
    assert (observer.admitted, observer.finished, stamp_of(step)) == ([], [], LEFT_OUT)
    assert observer.internals == ["beam_search"]


@pytest.mark.parametrize(
    ("scores", "reason", "parts"), [(True, "stop", [("mine-7", 1, "chat")]), (False, "length", [("mine-7", 1, "chat"),
                                                                               ("mine-7", 3, "chat")])]
)  # fmt: skip
def test_a_part_has_the_calls_id_number_and_operation(scores: bool, reason: str, parts: list[object]) -> None:
    observer = Observer()
    processor = frontend(observer)
    call = calls.Call(calls.Entry("m", "C.f", "chat", scores=scores))
    call.request_id = "mine-7"
    token = calls._call.set(call)
    try:
        for part in (0, 1):
            params = SamplingParams(n=2, max_tokens=1, detokenize=False)
            name = f"mine-7_{part}"
            processor.add_request(request(name, params), None, SimpleNamespace(
                sampling_params=params, request_id=name, external_req_id=name, child_requests={name},
                get_outputs=lambda request_id, output: ([], True)), 1, _queue())  # fmt: skip
            processor.process_outputs([output(name, [1], FinishReason.LENGTH)])
    finally:
        calls._call.reset(token)
    told = [(found.request_id, found.sequence, found.operation) for found in observer.admitted]
    assert told == parts
    assert observer.reasons == [reason] * len(parts), "one token is all that a score asks for"
    assert observer.internals == ["scoring"] * scores, "all items but the first"


def test_without_a_call_the_id_is_the_engines() -> None:
    observer = Observer()
    frontend(observer).add_request(request("cmpl-own-7"), None)
    (told,) = observer.admitted
    assert (told.request_id, told.sequence, told.operation) == ("cmpl-own-7", 0, "text_completion")


def test_a_hash_key_need_not_be_text() -> None:
    key = os.fsdecode(b"k\xff")  # as the environment gives it
    assert len(prompt_hash([1, 2], key) or "") == 32
    assert prompt_hash([1, 2], key) != prompt_hash([1, 2], "k")


@pytest.mark.parametrize(("hub", "lines"), [("", 1), ("tcp://10.0.0.1:5557", 0)])
def test_workers_on_other_hosts_need_a_hub_that_they_can_reach(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]], hub: str, lines: int
) -> None:
    monkeypatch.setenv("COREVITAL_HUB", hub)
    monkeypatch.setenv("COREVITAL_HUB_KEY", "0123456789abcdef")
    config = configuration()
    config.parallel_config.nnodes = 2
    assert attach(SimpleNamespace(output_processor=OutputProcessor(None, log_stats=False)), config, Observer())
    assert len([record for record in logged() if "workers on other hosts" in record.getMessage()]) == lines
