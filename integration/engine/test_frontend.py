"""What the frontend hands to the engine, on vLLM's own ``OutputProcessor``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor

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


def frontend(observer: Observer) -> OutputProcessor:
    processor = OutputProcessor(None, log_stats=False)
    parallel = SimpleNamespace(nnodes=1)
    config = SimpleNamespace(model_config=SimpleNamespace(served_model_name="tiny"), parallel_config=parallel)
    assert attach(SimpleNamespace(output_processor=processor), config, observer)
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
