"""Host CPU of the assembler a token, at steady decoding: one frame a step of all running sequences.

Prints microseconds of process CPU time a token, its median and best over repeats. Sequences end and are replaced as
they do in a server, so admission, completion, risk and reports are in the figure; the sender's side and the outputs
are not.

    python integration/bench/assembler.py [--running 256] [--tokens 400] [--frames 1500]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.record import ROW, SAMPLED, Frame, decode, encode
from corevital_otel.assembler import Assembler
from corevital_otel.report import RequestReport
from corevital_otel.risk import PriorRisk

ADMITTED = Admitted(
    request_id="r", engine_id="r", sequence=0, operation="chat", model="m", arrival_ns=0, prompt_tokens=8
)


class NoCounters:
    """Losses would make the figure worthless."""

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        raise SystemExit(f"{name} {amount} {labels}")


class Server:
    """Makes the frames of a server that decodes ``running`` sequences; their lengths vary by half around ``tokens``."""

    def __init__(self, running: int, tokens: int, exact: float, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tokens = tokens
        self.exact = exact
        self.next_key = 1
        self.keys = np.zeros(running, np.uint64)
        self.index = np.zeros(running, np.int64)
        self.length = np.zeros(running, np.int64)
        self.text = self.rng.integers(0, 30_000, (running, 2 * tokens), np.int32)
        self.rows = np.zeros(running, ROW)
        self.rows["vocab"] = 128_256
        self.rows["topk_ids"] = np.arange(20)
        self.rows["topk_logprobs"] = -3.0 - np.arange(20) / 4
        self.rows["margin"] = self.rows["topk_mass"] = 0.5

    def start(self, i: int) -> int:
        self.keys[i] = key = self.next_key
        self.next_key += 1
        self.index[i] = 0
        self.length[i] = self.rng.integers(self.tokens // 2, self.tokens * 3 // 2)
        self.text[i] = self.rng.integers(0, 30_000, self.text.shape[1])
        return key

    def step(self) -> tuple[bytes, bytes]:
        """The step's frame of rows, and the one of what was sampled in the step before."""
        started = self.index > 0
        sampled = np.zeros(int(started.sum()), SAMPLED)
        sampled["key"] = self.keys[started]
        sampled["index"] = before = self.index[started] - 1
        sampled["token"] = self.text[started, before]
        sampled["logprob"] = np.where(self.rng.random(len(sampled)) < self.exact, -1.0, np.nan)
        self.rows["key"] = self.keys
        self.rows["index"] = self.index
        self.rows["entropy"] = self.rng.random(len(self.rows), np.float32)
        self.rows["topk_ids"][:, 0] = self.text[np.arange(len(self.rows)), self.index]
        self.index += 1
        empty = np.empty(0, ROW)
        return encode(Frame(rows=empty, sampled=sampled)), encode(Frame(rows=self.rows, sampled=sampled[:0]))


def measure(running: int, tokens: int, frames: int, capture: str, exact: float) -> list[float]:
    """Microseconds a token, of each hundred frames."""
    reports: list[RequestReport] = []
    assembler = Assembler(reports.append, NoCounters(), risk=PriorRisk(0.7), capture=capture)
    server = Server(running, tokens, exact)
    for i in range(running):
        assembler.admit(server.start(i), ADMITTED)
        server.length[i] = server.rng.integers(8, tokens)  # out of step with each other
    costs: list[float] = []
    spent = handled = 0.0
    ended = 0
    for number in range(frames):
        sampled, rows = server.step()
        over = np.flatnonzero(server.index >= server.length)
        ends = [(int(server.keys[i]), server.text[i, : server.length[i]].tolist()) for i in over]
        begins = [server.start(int(i)) for i in over]
        begun = time.process_time()
        assembler.frame(decode(sampled))
        assembler.frame(decode(rows))
        for key, ids in ends:
            assembler.finish(key, Finished(reason="stop", token_ids=ids, end_ns=0))
        for key in begins:
            assembler.admit(key, ADMITTED)
        assembler.tick(time.monotonic())
        spent += time.process_time() - begun
        handled += running
        ended += len(ends)
        if (number + 1) % 100 == 0:
            costs.append(spent / handled * 1e6)
            spent = handled = 0.0
    if len(reports) != ended or any(report.incomplete for report in reports):
        raise SystemExit(f"{ended} sequences ended, {len(reports)} reports")
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, nargs="*", default=[1, 8, 64, 256])
    parser.add_argument("--tokens", type=int, default=400, help="mean output length")
    parser.add_argument("--frames", type=int, default=1500)
    arguments = parser.parse_args()
    print(f"{'running':>8} {'tokens':>7} {'capture':>8} {'logprobs':>9} {'median us/token':>16} {'best':>6}")
    for running in arguments.running:
        for capture, exact in (("summary", 1.0), ("full", 1.0), ("on_risk", 1.0), ("on_risk", 0.0)):
            costs = measure(running, arguments.tokens, arguments.frames, capture, exact)[1:]
            kind = "sent" if exact else "table"
            median = statistics.median(costs)
            print(
                f"{running:8} {arguments.tokens:7} {capture:>8} {kind:>9} {median:16.2f} {min(costs):6.2f}", flush=True
            )


if __name__ == "__main__":
    main()
