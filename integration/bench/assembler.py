"""Host CPU of the assembler a token, at steady decoding: one frame a step of all running sequences.

    python -m integration.bench.assembler [--running 1 8 64 256] [--tokens 100 400] [--frames 800] [--repeats 3]
    python -m integration.bench.assembler --memory 100000
    python -m integration.bench.assembler --parts

Sequences end and are replaced as they do in a server, so admission, completion, risk and reports are in the figure; the
sender's side and the outputs are not. A figure is the process's CPU time over a hundred frames; what is compared takes
turns, so that a busy machine slows all alike. The columns are capture modes, with each token's log-probability sent
along; in the last one it has to be looked up in the row's table.

With ``--memory`` it prints the resident memory of the process over so many sequences. With ``--parts`` it prints what
the end of a sequence costs, where ``--running`` ones end together: without parts, and with a reasoning and an answer of
half the tokens each.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from integration.bench.machine import processor, spread, versions

from corevital.frames.layout import ROW, SAMPLED, Frame, decode, encode
from corevital.frames.lifecycle import Admitted, Finished, Segment
from corevital_otel.losses import Loss
from corevital_otel.measure.assembler import Assembler
from corevital_otel.report import RequestReport
from corevital_otel.risk import PriorRisk

CAPTURES = {
    "summary": ("summary", 1.0),
    "full": ("full", 1.0),
    "on_risk": ("on_risk", 1.0),
    "on_risk, table": ("on_risk", 0.0),
}
"""Capture mode, and the share of tokens whose log-probability is sent along."""

ADMITTED = Admitted(
    request_id="r", engine_id="r", sequence=0, operation="chat", model="m", arrival_ns=0, prompt_tokens=8
)


STEPS_A_TURN = 10
"""Steps whose frames the hub finds together. The frame thread sends every 250 ms: this is a server of 25 ms a step."""


class NoCounters:
    """Losses would make the figure worthless."""

    def count_loss(self, loss: Loss, amount: int = 1) -> None:
        if amount:
            raise SystemExit(f"{amount} lost: {loss}")


class Server:
    """Makes the frames of a server that decodes ``running`` sequences; their lengths vary by half around ``tokens``."""

    def __init__(self, running: int, tokens: int, exact: float, next_key: Callable[[], int]) -> None:
        self.rng = np.random.default_rng(0)
        self.tokens = tokens
        self.exact = exact
        self.next_key = next_key
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
        self.keys[i] = key = self.next_key()
        self.index[i] = 0
        self.length[i] = self.rng.integers(self.tokens // 2, self.tokens * 3 // 2)
        self.text[i] = self.rng.integers(0, 30_000, self.text.shape[1])
        return key

    def said(self, tokens: int) -> list[tuple[int, ...]]:
        """The first tokens of each sequence."""
        return [tuple(text) for text in self.text[:, :tokens].tolist()]

    def step(self) -> bytes:
        """The step's frame: one row per sequence, and what was sampled from it."""
        tokens = self.text[np.arange(len(self.rows)), self.index]
        sampled = np.zeros(len(self.rows), SAMPLED)
        sampled["key"] = self.rows["key"] = self.keys
        sampled["index"] = self.rows["index"] = self.index
        sampled["token"] = self.rows["topk_ids"][:, 0] = tokens
        sampled["logprob"] = np.where(self.rng.random(len(sampled)) < self.exact, -1.0, np.nan)
        self.rows["entropy"] = self.rng.random(len(self.rows), np.float32)
        self.index += 1
        return encode(Frame(rows=self.rows, sampled=sampled))


class Turns:
    """An assembler that serves such a server, some frames a turn, with the sequences' ends as the hub hands them on."""

    def __init__(self, running: int, tokens: int, capture: Any, exact: float) -> None:
        self.ended = self.reported = 0
        self.assembler = Assembler(self._take, NoCounters(), risk=PriorRisk(0.7), capture=capture)
        self.server = Server(running, tokens, exact, itertools.count(1).__next__)
        for i in range(running):
            self.assembler.admit(self.server.start(i), ADMITTED)
            self.server.length[i] = self.server.rng.integers(8, tokens)  # out of step with each other

    def _take(self, report: RequestReport) -> None:
        self.reported += 1
        if report.incomplete:
            raise SystemExit("an incomplete report")

    def turn(self) -> float:
        """Some steps of the server; returns seconds of CPU."""
        spent = 0.0
        for _ in range(STEPS_A_TURN):
            frame = self.server.step()
            over = np.flatnonzero(self.server.index >= self.server.length)
            ends = [(int(self.server.keys[i]), self.server.text[i, : self.server.length[i]].tolist()) for i in over]
            begins = [self.server.start(int(i)) for i in over]
            begun = time.process_time()
            self.assembler.frame(decode(frame))
            for key, ids in ends:
                self.assembler.finish(key, Finished(reason="stop", token_ids=ids, end_ns=0))
            for key in begins:
                self.assembler.admit(key, ADMITTED)
            spent += time.process_time() - begun
            self.ended += len(ends)
        begun = time.process_time()
        self.assembler.tick(time.monotonic())
        spent += time.process_time() - begun
        if self.reported != self.ended:
            raise SystemExit(f"{self.ended} sequences ended, {self.reported} reports")
        return spent


def measure(running: int, tokens: int, frames: int, capture: Any, exact: float) -> list[float]:
    """Microseconds a token, of each hundred frames but the first, which warm up."""
    turns = Turns(running, tokens, capture, exact)
    per_figure = 100 // STEPS_A_TURN
    costs = [sum(turns.turn() for _ in range(per_figure)) / (100 * running) * 1e6 for _ in range(frames // 100)]
    return costs[1:]


def end_together(sequences: int, tokens: int, parts: bool) -> float:
    """Microseconds a sequence of the end of so many, of ``tokens`` tokens each, in one turn."""
    reports: list[RequestReport] = []
    assembler = Assembler(reports.append, NoCounters(), risk=PriorRisk(0.7))
    server = Server(sequences, tokens, 1.0, itertools.count(1).__next__)
    for i in range(sequences):
        assembler.admit(server.start(i), replace(ADMITTED, segmented=parts))
    for _ in range(tokens):
        assembler.frame(decode(server.step()))
    half = tokens // 2
    segments = (Segment("reasoning", 0, half), Segment("mark", half, half + 1)) if parts else ()
    ends = [Finished(reason="stop", token_ids=text, end_ns=0, segments=segments) for text in server.said(tokens)]
    begun = time.process_time()
    for key, end in zip(server.keys.tolist(), ends, strict=True):
        assembler.finish(key, end)
    assembler.tick(time.monotonic())
    spent = time.process_time() - begun
    if len(reports) != sequences or any(report.incomplete or (report.segments is None) == parts for report in reports):
        raise SystemExit("a sequence was not reported as it should be")
    return spent / sequences * 1e6


def show_parts(options: argparse.Namespace) -> None:
    print("microseconds of CPU a sequence that ends, p20 / p50 / p80")
    print("| ending together x tokens | without parts | reasoning and answer |\n| --- | --- | --- |")
    for running in options.running:
        for tokens in options.tokens:
            costs: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(5 * options.repeats):
                for parts, figures in costs.items():
                    figures.append(end_together(running, tokens, parts))
            print(f"| {running} x {tokens} | {' | '.join(map(spread, costs.values()))} |", flush=True)


def resident_mib() -> float:
    """Resident memory of this process (Linux only)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def show_costs(options: argparse.Namespace) -> None:
    print("microseconds of CPU a token, p20 / p50 / p80")
    print(f"| running x tokens | {' | '.join(CAPTURES)} |\n|{' --- |' * (len(CAPTURES) + 1)}")
    for running in options.running:
        for tokens in options.tokens:
            costs: dict[str, list[float]] = {name: [] for name in CAPTURES}
            for _ in range(options.repeats):
                for name, (capture, exact) in CAPTURES.items():
                    costs[name] += measure(running, tokens, options.frames, capture, exact)
            print(f"| {running} x {tokens} | {' | '.join(map(spread, costs.values()))} |", flush=True)


def show_memory(options: argparse.Namespace) -> None:
    running, tokens = options.running[-1], options.tokens[0]
    print(f"resident memory, {running} running sequences of {tokens} tokens, capture full")
    turns = Turns(running, tokens, "full", 1.0)
    print("| sequences | MiB |\n| --- | --- |")
    for reported in range(0, options.memory + 1, 10_000):
        while turns.reported < reported:
            turns.turn()
        print(f"| {reported} | {resident_mib():.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Host CPU of the assembler a token, and its memory.")
    parser.add_argument("--running", type=int, nargs="+", default=[1, 8, 64, 256], help="sequences at once")
    parser.add_argument("--tokens", type=int, nargs="+", default=[100, 400], help="mean output lengths")
    parser.add_argument("--frames", type=int, default=800, help="for each measurement, from 300 on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", action="store_true", help="show what the end of sequences with parts costs instead")
    parser.add_argument(
        "--memory", type=int, metavar="SEQUENCES", help="show the memory over so many sequences instead"
    )
    options = parser.parse_args()
    print(f"{processor()}; {versions('numpy')}; ", end="")
    if options.memory:
        show_memory(options)
    elif options.parts:
        show_parts(options)
    else:
        show_costs(options)


if __name__ == "__main__":
    main()
