"""What corevital's judgements are worth on a real language model: ``python -m integration.bench.real``.

    python -m integration.bench.real [--folder runs/bench-real] [--dtype bfloat16] [--seconds S] [--only-ask]
        [--only-report] [--table integration/bench/real/recorded.csv]

SmolLM2-135M-Instruct is served by real vLLM with the plugin and asked for 402 long answers and some 3,900 short ones
that can be checked. About 40 minutes on two idle cores. Answers and the store stay in the folder, and a run continues
where the last one stopped. Prints the tables of docs/understand/risk.md.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from integration.bench.real.ask import Job, answers, ask, bar, jobs
from integration.bench.real.model import NAME, model
from integration.bench.real.rows import read, recorded, stored
from integration.harness.vllm_server import vllm

FOLDER = Path("runs/bench-real")
_STORED_S = 20.0


def collect(
    folder: Path, dtype: str, seconds: float = math.inf, *, asked: Sequence[Job], threads: int | None = None
) -> int:
    """Ask what has no answer yet, for so long at most. Returns how many questions are left.

    Args:
        folder: of the answers and the store.
        dtype: of the served model.
        seconds: no more is asked after so long.
        asked: the questions.
        threads: of the engine; None: one for each core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "answers.jsonl"
    done = _done(folder)
    wanted = [job for job in asked if job.key not in done]
    if wanted:
        env = {
            "COREVITAL_DB": str((folder / "corevital.db").resolve()),
            "COREVITAL_DB_RETENTION_DAYS": "3650",
            "COREVITAL_CAPTURE": "full",
            "COREVITAL_RISK_BASIS": "prior",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound to its cores, it would stand behind whatever else runs there
            "OMP_NUM_THREADS": str(threads or len(os.sched_getaffinity(0))),
        }
        served = (NAME, model())
        print("starting vLLM", file=sys.stderr, flush=True)
        with vllm(folder, "--dtype", dtype, env=env, model=served, ready_s=1200.0) as server, bar() as progress:
            asyncio.run(ask(server.url, wanted, path, seconds, progress))
            _wait_stored(folder, path)
    return len(wanted) - len(_done(folder) - done)


def _done(folder: Path) -> set[str]:
    """The keys whose answers are in the store; others are lost and asked again."""
    known = stored(folder)
    return {key for key, one in answers(folder / "answers.jsonl").items() if one["id"] in known}


def _wait_stored(folder: Path, path: Path) -> None:
    """Wait until the store has every answer: a server that is stopped loses what its engine has not sent yet."""
    deadline = time.monotonic() + _STORED_S
    while missing := {one["id"] for one in answers(path).values()} - stored(folder):
        if time.monotonic() > deadline:
            print(f"{len(missing)} answers are not in the store", file=sys.stderr)
            return
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what corevital says about a real model.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where answers and the store are kept")
    parser.add_argument("--seconds", type=float, default=math.inf, help="ask for so long at most, then stop")
    parser.add_argument("--only-ask", action="store_true", help="no report")
    parser.add_argument("--only-report", action="store_true", help="of what is in the folder: no model, no vLLM")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the served model; float32 is faster on a processor without instructions for bfloat16",
    )
    parser.add_argument("--table", type=Path, help="only the report, of a recorded table: no model, no vLLM")
    options = parser.parse_args()
    if options.only_report or options.table:
        left = 0
    else:
        left = collect(options.folder, options.dtype, options.seconds, asked=jobs())
    print(f"{left} questions left", file=sys.stderr)
    if left or options.only_ask:
        return
    from integration.bench.real import report

    report.everything(recorded(options.table) if options.table else read(options.folder), options.dtype)


if __name__ == "__main__":
    main()
