"""What the frontend hands to the engine, on vLLM's own ``OutputProcessor``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine import EngineCoreRequest, output_processor
from vllm.v1.engine.output_processor import OutputProcessor

from corevital.engines import vllm_names
from corevital.engines.vllm_frontend import attach
from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.stamp import EXTRA_ARG, Stamp

FORGED = f"{'f' * 32}:1"


class Observer:
    """Draws every second sequence."""

    def __init__(self, draw: bool = True) -> None:
        self.draw = draw
        self.admitted: list[Admitted] = []
        self.finished: list[tuple[int, Finished]] = []

    def admit(self, request: Admitted) -> Stamp | None:
        self.admitted.append(request)
        return Stamp("0" * 32, len(self.admitted)) if self.draw else None

    def finish(self, key: int, outcome: Finished) -> None:
        self.finished.append((key, outcome))


def frontend(observer: Observer, **wanted: Any) -> OutputProcessor:
    processor = OutputProcessor(None, log_stats=False)
    parallel = SimpleNamespace(nnodes=1)
    config = SimpleNamespace(model_config=SimpleNamespace(served_model_name="tiny"), parallel_config=parallel)
    assert attach(SimpleNamespace(output_processor=processor), config, observer, **wanted)
    return processor


def request(name: str, params: SamplingParams | None = None, **fields: Any) -> EngineCoreRequest:
    params = params or SamplingParams(output_kind=RequestOutputKind.DELTA, detokenize=False)
    known = {
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
    assert stamp_of(forged) == (f"{'0' * 32}:1" if draw else None)


def test_a_forged_stamp_does_not_survive_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Observer):
        def admit(self, request: Admitted) -> Stamp | None:
            raise RuntimeError("no")

    monkeypatch.setenv("COREVITAL_RAISE", "0")
    forged = request("a", SamplingParams(extra_args={EXTRA_ARG: FORGED}, detokenize=False))
    frontend(Broken()).add_request(forged, None)
    assert stamp_of(forged) is None


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
    assert stamp_of(end) is None


def test_what_a_request_asked_for_is_told() -> None:
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
    processor.add_request(request("a"), "a secret")
    assert (observer.admitted[0].prompt_text, observer.admitted[0].prompt_hash) == (None, None)
    processor.abort_requests(["a"], True)
    assert [outcome.text for _, outcome in observer.finished] == [None]
    told = Observer()
    frontend(told, content=True).add_request(request("a"), "a secret")
    assert told.admitted[0].prompt_text == "a secret"


def test_a_hash_tells_equal_prompts_and_nothing_without_the_key() -> None:
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
    vllm_names.leave_tokens_to_us()
    vllm_names.leave_tokens_to_us()
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


def test_a_vllm_that_makes_its_spans_in_another_way_is_said_once(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    monkeypatch.delattr(output_processor, "instrument_manual")
    vllm_names.leave_tokens_to_us()
    vllm_names.leave_tokens_to_us()
    (line,) = [record.message for record in logged() if "makes its own spans" in record.message]
    assert "--otlp-traces-endpoint" in line
