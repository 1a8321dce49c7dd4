"""Host CPU a token, without the kernel: in the engine's thread, in the frame thread, and in the API server.

    python -m integration.bench.host [--running 1 8 64 256] [--steps 400] [--tokens 100]

The columns, in microseconds a token:

- ``V1 engine thread``, ``V2 engine thread``: the adapters, from a step's logits to the table they post and from its
  tokens to theirs, minus a whole call of ``token_stats`` on the same logits. On a CPU.
- ``frame thread``: turning tables into frames, without the socket, one step per frame.
- ``API server``: every thread of the process except the one that makes the frames: receiving, assembling, risk, a row
  in the store and a span to a collector for each sequence of about ``--tokens`` tokens; capture ``on_risk``. Admitting
  and finishing a request, which the request's handler does, is not included.
- ``with a hub process``: the same with ``COREVITAL_PROCESS=process``, without what the hub process uses.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from integration.bench.assembler import ADMITTED, Server
from integration.bench.machine import processor, spread, versions
from tests.harness.processes import Group, environment, free_port

from corevital.engines.vllm.runner_v1 import V1Adapter
from corevital.engines.vllm.runner_v2 import V2Adapter
from corevital.engines.vllm.stamps import EXTRA_ARG
from corevital.frames.layout import Frame, Source, decode, encode
from corevital.frames.lifecycle import Finished, Observer
from corevital.frames.remote_hub import RemoteHub
from corevital.frames.sender import FrameSender
from corevital.frames.stamp import Stamp
from corevital.frames.wire import is_here
from corevital.kernels import token_stats, warm_up
from corevital.steps.packing import deliver
from corevital.steps.step import Part, SampledStep, Step
from corevital_otel.sampling import Sampler
from corevital_otel.service.keeper import HubKeeper
from corevital_otel.service.loop import Hub
from corevital_otel.service.separate import Handover
from corevital_otel.settings import Settings

VOCAB = 512  # so small that the kernel takes little of the time measured
PROMPT = 8
BLOCK = 50  # steps behind one figure


def params(key: int) -> Any:
    """What the adapters read of a ``SamplingParams``."""
    plain = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "temperature": 0.8}
    return SimpleNamespace(extra_args={EXTRA_ARG: str(Stamp("0" * 32, key))}, **plain)


def v1_step(running: int, post: Callable[[Step | SampledStep], None]) -> Callable[[torch.Tensor], None]:
    outputs: list[list[int]] = [[] for _ in range(running)]
    adapter = V1Adapter(post)
    added = [(i, params(i + 1), None, output) for i, output in enumerate(outputs)]
    adapter.update_state(SimpleNamespace(removed=[], added=added, moved=[]))

    def step(logits: torch.Tensor) -> None:
        adapter.update_state(None)
        adapter.apply(logits)
        for output in outputs:
            output.append(1)

    return step


def v2_step(running: int, post: Callable[[Step | SampledStep], None], steps: int) -> Callable[[torch.Tensor], None]:
    def tokens(value: int) -> Any:
        column = torch.full((running,), value, dtype=torch.int32)
        return SimpleNamespace(gpu=column, np=column.numpy())

    states: Any = SimpleNamespace(max_num_reqs=running, prompt_len=tokens(PROMPT), prefill_len=tokens(PROMPT))
    states.total_len = tokens(PROMPT)
    states.all_token_ids = SimpleNamespace(gpu=torch.ones(running, PROMPT + steps + 2, dtype=torch.int32))
    adapter = V2Adapter(post, states)
    for slot in range(running):
        adapter.add_request(slot, params(slot + 1))
    slots = torch.arange(running, dtype=torch.int32)
    context: Any = SimpleNamespace(expanded_idx_mapping=slots, idx_mapping_np=slots.numpy(), pos=None)

    def step(logits: torch.Tensor) -> None:
        adapter.apply_staged_writes()
        context.pos = states.total_len.gpu.long() - 1
        adapter.apply(logits, context)
        states.total_len.gpu += 1

    return step


class Encoding:
    """A sender that sends nothing, at no cost."""

    def send(self, server: str, rows: Any = None, sampled: Any = None) -> None:
        encode(Frame(_EMPTY.rows if rows is None else rows, _EMPTY.sampled if sampled is None else sampled))

    def drop(self, server: str, records: int) -> None:
        raise SystemExit("records were dropped")

    def close(self) -> None:
        pass


_EMPTY = decode(encode(Frame(np.empty(0, "u1"), np.empty(0, "u1"))))


def worker(running: int, steps: int) -> tuple[list[float], list[float], list[float]]:
    """Microseconds a token of the V1 and V2 adapters, and of the frame thread."""
    logits = torch.randn(running, VOCAB)
    posted: list[Step | SampledStep] = []
    make = {"v1": v1_step(running, posted.append), "v2": v2_step(running, posted.append, steps)}
    calls: dict[str, Callable[[torch.Tensor], object]] = {**make, "kernel": token_stats}
    costs: dict[str, list[float]] = {name: [] for name in (*calls, "frame thread")}
    for call in calls.values():
        call(logits)
    for _ in range(steps // BLOCK):
        for name, call in calls.items():
            posted.clear()
            begun = time.thread_time()
            for _ in range(BLOCK):
                call(logits)
            costs[name].append((time.thread_time() - begun) / (BLOCK * running) * 1e6)
            if name == "v2":
                begun = time.thread_time()
                tokens = {phase.step: phase.tokens for phase in posted if isinstance(phase, SampledStep)}
                for done in posted:
                    if isinstance(done, Step):
                        deliver([Part(done, True, tokens.get(done))], done.owners, Encoding())
                costs["frame thread"].append((time.thread_time() - begun) / (BLOCK * running) * 1e6)
    return (
        [own - kernel for own, kernel in zip(costs["v1"], costs["kernel"], strict=True)],
        [own - kernel for own, kernel in zip(costs["v2"], costs["kernel"], strict=True)],
        costs["frame thread"],
    )


@contextlib.contextmanager
def collector(folder: Path) -> Iterator[str]:
    """A collector that discards what it receives."""
    agent = next(file for file in importlib.metadata.files("rotel") or () if file.name == "rotel-agent").locate()
    grpc, http = free_port(), free_port()
    command = [str(agent), "start", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--exporter", "blackhole"]
    command += ["--otlp-http-endpoint", f"127.0.0.1:{http}"]
    group = Group(command, environment({}), folder, folder / "rotel.log")
    try:
        time.sleep(1)
        yield f"http://127.0.0.1:{grpc}"
    finally:
        group.stop()


@contextlib.contextmanager
def in_thread(db: Path) -> Iterator[Observer]:
    """The telemetry half as a thread of this process."""
    hub = Hub(Settings(db=db))
    hub.start()
    yield hub
    hub.close()


@contextlib.contextmanager
def in_process(db: Path) -> Iterator[Observer]:
    """The telemetry half as a process beside this one."""
    os.environ["COREVITAL_DB"] = str(db)
    keeper = HubKeeper("m", {"engine.name": "vllm", "engine.version": "", "engine.runner": "v1"}, "", has_port=False)
    hub = RemoteHub(wanted=keeper.start, metrics=len)
    hub.want()
    while not is_here(hub.left_out.server):
        time.sleep(0.1)
    yield Handover(hub, Sampler(1.0))
    if not hub.drain(20.0):
        raise SystemExit("the hub process does not report")
    hub.close()
    keeper.close()


def api_server(running: int, steps: int, tokens: int, hub: Observer) -> list[float]:
    """Microseconds a token of everything the API server does for us, its store and its spans included."""
    sender = FrameSender(Source("vllm", "v1", "raw"))
    stamps: dict[int, Stamp] = {}

    def next_key() -> int:
        stamp = hub.admit(ADMITTED)
        assert stamp is not None
        stamps[stamp.key] = stamp
        return stamp.key

    server = Server(running, tokens, 1.0, next_key)
    for i in range(running):
        server.start(i)
        server.length[i] = server.rng.integers(8, tokens)  # out of step with each other
    address = next(iter(stamps.values())).server
    costs = []
    for _ in range(steps // BLOCK):
        begun, own = time.process_time(), time.thread_time()
        for _ in range(BLOCK):
            frame = decode(server.step())
            sender.send(address, rows=frame.rows, sampled=frame.sampled)
            for i in np.flatnonzero(server.index >= server.length).tolist():
                ids = tuple(server.text[i, : server.length[i]].tolist())
                hub.finish(int(server.keys[i]), Finished(reason="stop", token_ids=ids, end_ns=time.time_ns()))
                server.start(i)
            time.sleep(0.01)
        costs.append((time.process_time() - begun - (time.thread_time() - own)) / (BLOCK * running) * 1e6)
    if lost := sender.dropped[address]:
        raise SystemExit(f"{lost} records were dropped")
    for key in server.keys.tolist():
        hub.finish(key, Finished(reason="abort", token_ids=(), end_ns=time.time_ns()))
    sender.close()
    return costs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Host CPU a token, beside the kernel.")
    parser.add_argument("--running", type=int, nargs="+", default=[1, 8, 64, 256], help="sequences at once")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=100, help="mean output length")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_up(VOCAB)
    columns = ["V1 engine thread", "V2 engine thread", "frame thread", "API server", "with a hub process"]
    print(f"{processor()}; {versions('torch', 'numpy')}; microseconds of CPU a token, p20 / p50 / p80")
    print(f"| running | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    with tempfile.TemporaryDirectory() as name, collector(Path(name)) as endpoint:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        for running in options.running:
            costs = list(worker(running, options.steps))
            for place in (in_thread, in_process):
                with place(Path(name) / f"{running}-{place.__name__}.db") as hub:
                    costs.append(api_server(running, options.steps, options.tokens, hub))
            print(f"| {running} | {' | '.join(map(spread, costs))} |", flush=True)


if __name__ == "__main__":
    main()
