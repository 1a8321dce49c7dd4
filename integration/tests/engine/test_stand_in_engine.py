"""A small engine that is not vLLM, on the protocol alone: its frontend and worker are one process, as TGI's shard is.

It is a stand-in: its model draws logits at random. What is real is everything behind the protocol: stamps, recorder,
frame thread, frames, hub and report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from corevital.engines.protocol import Engine, Facts
from corevital.engines.request_args import RequestArgs, read
from corevital.entry import Telemetry
from corevital.frames.layout import Source
from corevital.frames.lifecycle import Admitted, Finished, Observer
from corevital.frames.sender import FrameSender
from corevital.frames.stamp import Stamp
from corevital.steps.frame_thread import FrameThread
from corevital.steps.recorder import Recorder
from corevital.steps.slots import Owners, scale
from corevital_otel.report import RequestReport
from corevital_otel.service.outputs import Outputs
from corevital_otel.store.content import Content

VOCAB = 100
PLACE = Source("toy", "loop", "pre_grammar")


@dataclass
class Request:
    name: str
    temperature: float
    tokens: list[int] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    truth: list[float] = field(default_factory=list)  # surprisals, nats


class Adapter:
    """Between the toy's steps and the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.owners: Owners | None = None

    def batch(self, requests: list[Request]) -> None:
        """The batch has changed."""
        stamps = [carried(request) for request in requests]
        assert None not in stamps
        scales = [scale(request.temperature) for request in requests]
        self.owners = Owners.of([stamp for stamp in stamps if stamp is not None], scales)

    def step(self, logits: torch.Tensor, requests: list[Request], sample: Callable[[], list[int]]) -> list[int]:
        """The same step shows the logits and knows the tokens."""
        assert self.owners is not None
        rows = list(range(len(requests)))
        observed = self.recorder.record_logits(logits, None, rows, [len(one.tokens) for one in requests], self.owners)
        tokens = sample()
        if observed is not None:
            self.recorder.record_tokens(observed, tokens)
        return tokens


class Toy:
    """The engine: a batch of requests, run to their ends."""

    def __init__(self) -> None:
        self.observer: Observer | None = None
        frame_thread = FrameThread(FrameSender(PLACE))
        self.adapter = observe(None, Recorder(frame_thread.post))
        self.close = frame_thread.close

    def serve(self, requests: list[Request], length: int) -> None:
        assert self.observer is not None
        keys = {}
        for request in requests:
            names: dict[str, Any] = {"request_id": request.name, "engine_id": request.name, "model": "toy-model"}
            where: dict[str, Any] = {"engine": PLACE.engine, "runner": PLACE.runner, "stage": PLACE.stage}
            admitted = Admitted(
                **names, **where, sequence=0, operation="text_completion", arrival_ns=time.time_ns(), prompt_tokens=1
            )
            stamp = self.observer.admit(admitted)
            assert stamp is not None
            keys[request.name] = stamp.key
            carry(request, stamp)
        self.adapter.batch(requests)
        temperatures = torch.tensor([[request.temperature] for request in requests])
        for _ in range(length):
            logits = torch.randn(len(requests), VOCAB) * 3

            def sample(logits: torch.Tensor = logits) -> list[int]:
                logits.div_(temperatures)  # in place, as samplers do
                drawn: list[int] = torch.multinomial(logits.softmax(-1), 1)[:, 0].tolist()
                return drawn

            seen = logits.log_softmax(-1)
            tokens = self.adapter.step(logits, requests, sample)
            for row, (request, token) in enumerate(zip(requests, tokens, strict=True)):
                request.tokens.append(token)
                request.truth.append(-float(seen[row, token]))
        for request in requests:
            self.observer.finish(
                keys[request.name],
                Finished(reason="length", token_ids=tuple(request.tokens), end_ns=time.time_ns()),
            )


# the eight things

STAGES = {PLACE.runner: PLACE.stage}


def register(host: Any) -> None:
    raise AssertionError("the toy is not loaded by anything")


def facts(running: Toy) -> Facts:
    names: dict[str, str | int] = {"engine.name": "toy", "engine.version": "1.0", "engine.runner": PLACE.runner}
    return Facts(model="toy-model", source=PLACE, resource={**names, "device.type": "cpu"})


def follow(running: Toy, observer: Observer, *, content: bool, hash_key: str | None) -> bool:
    running.observer = observer
    return True


def carry(params: Request, stamp: Stamp | None) -> None:
    params.fields["stamp"] = stamp  # the same process: no text


def carried(params: Request) -> Stamp | None:
    stamp: Stamp | None = params.fields.get("stamp")
    return stamp


def observe(worker: None, recorder: Recorder) -> Adapter:
    return Adapter(recorder)


def reports(worker: None) -> Callable[[int], bool]:
    return lambda slot: True


def request_args(params: Request) -> RequestArgs:
    return read(params.fields, "toy_args")


def test_an_engine_whose_tokens_come_in_the_same_step_is_measured_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COREVITAL_DB", "")
    reports_made: list[RequestReport] = []
    put = Outputs.put

    def noting(outputs: Outputs, report: RequestReport, content: Content | None) -> None:
        reports_made.append(report)
        put(outputs, report, content)

    monkeypatch.setattr(Outputs, "put", noting)
    engine: Engine[Toy, Request, None] = sys.modules[__name__]
    toy = Toy()
    close = Telemetry(engine).start(toy, {})
    assert close is not None
    requests = [Request("warm", 1.3), Request("cold", 0.5), Request("plain", 1.0)]
    toy.serve(requests, 20)
    assert toy.observer is not None
    assert toy.observer.drain(20)
    toy.close()
    close()
    found = {report.admitted.request_id: report for report in reports_made}
    assert found.keys() == {"warm", "cold", "plain"}
    for request in requests:
        report = found[request.name]
        assert not report.incomplete
        assert (report.admitted.engine, report.runner, report.stage) == PLACE
        assert report.features.tokens == 20
        assert report.features.surprisal_estimated == 0, "each log-probability came with its token"
        bits = sum(request.truth) / len(request.truth) / 0.6931471805599453
        assert report.features.surprisal_mean == pytest.approx(bits, abs=1e-4)
