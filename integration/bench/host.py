"""Host CPU a token, beside the kernel: what an engine's own thread spends on measuring, what runs beside it, and the
API server's half, its store and its spans.

    python -m integration.bench.host [--running 1 8 64 256] [--steps 400] [--tokens 100]

The columns, in microseconds a token:

- ``V1 engine thread``, ``V2 engine thread``: the adapters, from a step's logits to the table they post and from its
  tokens to theirs; a whole call of ``token_stats``, measured beside it on the same logits, is taken off. On a CPU.
- ``courier``: turning tables into frames, without the socket, a step a frame.
- ``API server``: every thread of the process but the one that makes the frames: receiving, assembling, risk, a row in
  the store and a span to a collector for each sequence of about ``--tokens`` tokens; capture ``on_risk``. Admitting and
  finishing a request, which its own handler does, is not among it.
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
from integration.harness.processes import Group, environment, free_port

from corevital.engines.courier import deliver
from corevital.engines.steps import Step
from corevital.engines.vllm_v1 import V1Adapter
from corevital.engines.vllm_v2 import V2Adapter
from corevital.frames.lifecycle import Finished
from corevital.frames.record import Frame, decode, encode
from corevital.frames.stamp import EXTRA_ARG, Stamp
from corevital.frames.transport import FrameSender
from corevital.kernels import token_stats, warm_up
from corevital_otel.hub import Hub
from corevital_otel.settings import Settings

VOCAB = 512  # so small that the kernel's time is little beside what is measured
PROMPT = 8
BLOCK = 50  # steps behind one figure


def params(key: int) -> Any:
    """What the adapters read of a ``SamplingParams``."""
    plain = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "temperature": 0.8}
    return SimpleNamespace(extra_args={EXTRA_ARG: str(Stamp("0" * 32, key))}, **plain)


def v1_step(running: int, post: Callable[[Step], None]) -> Callable[[torch.Tensor], None]:
    outputs: list[list[int]] = [[] for _ in range(running)]
    adapter = V1Adapter(post)
    added = [(i, params(i + 1), None, output) for i, output in enumerate(outputs)]
    adapter.update_state(SimpleNamespace(removed=[], added=added, moved=[]))  # type: ignore[arg-type]

    def step(logits: torch.Tensor) -> None:
        adapter.update_state(None)
        adapter.observe(logits)
        for output in outputs:
            output.append(1)

    return step


def v2_step(running: int, post: Callable[[Step], None], steps: int) -> Callable[[torch.Tensor], None]:
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
        adapter.settle()
        context.pos = states.total_len.gpu.long() - 1
        adapter.observe(logits, context)
        states.total_len.gpu += 1

    return step


class Encoding:
    """A sender whose way out costs nothing."""

    def send(self, server: str, **tables: Any) -> None:
        encode(Frame(**{"rows": _EMPTY.rows, "sampled": _EMPTY.sampled, **tables}))

    def drop(self, server: str, records: int) -> None:
        raise SystemExit("records were dropped")

    def close(self) -> None:
        pass


_EMPTY = decode(encode(Frame(np.empty(0, "u1"), np.empty(0, "u1"))))


def worker(running: int, steps: int) -> tuple[list[float], list[float], list[float]]:
    """Microseconds a token of the V1 and V2 adapters, and of the courier."""
    logits = torch.randn(running, VOCAB)
    posted: list[Step] = []
    make = {"v1": v1_step(running, posted.append), "v2": v2_step(running, posted.append, steps)}
    calls = {**make, "kernel": token_stats}
    costs: dict[str, list[float]] = {name: [] for name in (*calls, "courier")}
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
                for done in dict.fromkeys(posted):  # each was posted twice
                    deliver([done.take()], done.occupants, Encoding())
                costs["courier"].append((time.thread_time() - begun) / (BLOCK * running) * 1e6)
    return (
        [own - kernel for own, kernel in zip(costs["v1"], costs["kernel"], strict=True)],
        [own - kernel for own, kernel in zip(costs["v2"], costs["kernel"], strict=True)],
        costs["courier"],
    )


@contextlib.contextmanager
def collector(folder: Path) -> Iterator[str]:
    """A collector that throws away what it takes in."""
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


def api_server(running: int, steps: int, tokens: int, folder: Path) -> list[float]:
    """Microseconds a token of everything the API server does for us, its store and its spans included."""
    hub = Hub(Settings(db=folder / f"{running}.db"))
    hub.start()
    sender = FrameSender("v1")
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
            for i in np.flatnonzero(server.index >= server.length):
                ids = tuple(server.text[i, : server.length[i]].tolist())
                hub.finish(int(server.keys[i]), Finished(reason="stop", token_ids=ids, end_ns=time.time_ns()))
                server.start(int(i))
            time.sleep(0.01)
        costs.append((time.process_time() - begun - (time.thread_time() - own)) / (BLOCK * running) * 1e6)
    if lost := sender.dropped[address]:
        raise SystemExit(f"{lost} records were dropped")
    sender.close()
    hub.close()
    return costs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Host CPU a token, beside the kernel.")
    parser.add_argument("--running", type=int, nargs="+", default=[1, 8, 64, 256], help="sequences at once")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=100, help="mean output length")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_up(VOCAB)
    columns = ["V1 engine thread", "V2 engine thread", "courier", "API server"]
    print(f"{processor()}; {versions('torch', 'numpy')}; microseconds of CPU a token, p20 / p50 / p80")
    print(f"| running | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    with tempfile.TemporaryDirectory() as name, collector(Path(name)) as endpoint:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        for running in options.running:
            costs = (
                *worker(running, options.steps),
                api_server(running, options.steps, options.tokens, Path(name)),
            )
            print(f"| {running} | {' | '.join(map(spread, costs))} |", flush=True)


if __name__ == "__main__":
    main()
