"""vLLM with and without the plugin, on the GPU of this machine: ``make gpu-vllm``. docs/develop/gpu.md describes it.

    python -m integration.gpu_vllm [--models A B | --dummy] [--setups NAME ...] [--out FILE] [--device cpu]

Each setup is a pair of engines, which answer :mod:`integration.gpu_vllm.parity` and, with vLLM's default scheduling,
:mod:`integration.gpu_vllm.cost`. A part that fails is a row with its cause; the others continue. Exit 1 if one failed.

On a CPU it is a dry run with tiny models: the same code, Model Runner V2 in Triton's interpreter, no goal judged.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration.gpu_vllm.models import Model
    from integration.gpu_vllm.pair import Setup
    from integration.gpu_vllm.table import Row


def unusable(device: str) -> str:
    """Why nothing can be run with this Python, and what to do; "" where it can."""
    fix = "docs/develop/gpu.md shows how to set GPU_PYTHON up, then: make gpu-vllm GPU_PYTHON=..."
    if importlib.util.find_spec("vllm") is None:
        return f"{sys.executable} has no vLLM: {fix}"
    if not entry_points(group="vllm.general_plugins", name="corevital"):
        return f"{sys.executable} has no corevital, which vLLM finds only if it is installed: {fix}"
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return f"the torch of {sys.executable} finds no GPU: {fix}; a dry run without one: --device cpu"
    return ""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Report:
    """The rows so far; each is printed, and the file is rewritten."""

    def __init__(self, path: Path, device: str) -> None:
        from integration.gpu_vllm import table

        self._path, self._table = path, table
        self._head = table.machine(device)
        self._parity: list[Row] = []
        self._cost: list[Row] = []
        for line in self._head:
            say(line)

    def add(self, model: Model, setup: Setup, row: Row, *, is_cost: bool = False) -> None:
        row = row._replace(cells={"model": model.name, "setup": setup.name, **row.cells})
        (self._cost if is_cost else self._parity).append(row)
        found = ", ".join(f"{name} {value}" for name, value in row.cells.items() if name not in ("model", "setup"))
        say(f"{model.name} {setup.name}: {row.result} {found} {row.note}")
        self._table.write(self._path, self._head, self._parity, self._cost, is_whole=False)

    def close(self) -> bool:
        """Write it as finished. Whether a part failed."""
        self._table.write(self._path, self._head, self._parity, self._cost, is_whole=True)
        say(f"written to {self._path}")
        return any(row.result == self._table.FAIL for row in (*self._parity, *self._cost))


def run(model: Model, setup: Setup, options: argparse.Namespace, report: Report, folder: Path) -> None:
    """One pair of engines; what fails becomes a row."""
    import torch
    from integration.gpu_vllm.cost import cost
    from integration.gpu_vllm.pair import pair
    from integration.gpu_vllm.parity import parity
    from integration.gpu_vllm.table import FAIL, NOT_RUN, Row
    from integration.harness.runners import RUNNERS

    if setup.runner not in RUNNERS:
        return report.add(model, setup, Row({}, NOT_RUN, "this vLLM's Model Runner V2 shows no logits to plugins"))
    gpus = torch.cuda.device_count()
    if options.device == "cuda" and gpus < setup.gpus:  # on a CPU each rank is a process
        return report.add(model, setup, Row({}, NOT_RUN, f"needs {setup.gpus} GPUs, here are {gpus}"))
    logs = options.out.with_suffix("")
    logs.mkdir(parents=True, exist_ok=True)
    is_cost = False
    say(f"{model.name} {setup.name}: starting two engines, {setup.scheduling}")
    try:
        most = max(*options.batches, 2 * options.sequences)
        with pair(model, setup, options.device, most, folder, logs) as engines:
            report.add(model, setup, parity(model, setup, engines, options.sequences, options.tokens))
            is_cost = setup.cost
            if is_cost:
                say(f"{model.name} {setup.name}: cost, {options.rounds} rounds of each batch and temperature")
                is_judged = options.device == "cuda"
                for row in cost(engines, options.batches, options.rounds, options.cost_tokens, is_judged):
                    report.add(model, setup, row, is_cost=True)
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[-1]
        report.add(model, setup, Row({}, FAIL, f"{type(error).__name__}: {line}"), is_cost=is_cost)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare vLLM with and without the plugin: tokens, values and cost.")
    parser.add_argument("--models", nargs="+", help="names on the Hub, paths, or dummy-1B, dummy-8B, dummy-tiny")
    parser.add_argument("--dummy", action="store_true", help="random weights, no network: dummy-1B and dummy-8B")
    parser.add_argument("--setups", nargs="+", help="v1-async, v2-ngram, ...; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-vllm.md"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64, 256], help="of the cost")
    for name, default in {"rounds": 15, "cost-tokens": 128, "sequences": 16, "tokens": 48}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if reason := unusable(options.device):
        sys.exit(f"gpu-vllm: {reason}")
    from integration.gpu_vllm.models import HUB, resolve
    from integration.gpu_vllm.pair import SETUPS

    tiny, random_weights = ("dummy-tiny", "dummy-small"), ("dummy-1B", "dummy-8B")
    names = options.models or (tiny if options.device == "cpu" else random_weights if options.dummy else HUB)
    if unknown := set(options.setups or ()) - SETUPS.keys():
        parser.error(f"no setup {', '.join(unknown)}: use {', '.join(SETUPS)}")
    options.out = options.out.absolute()
    report = Report(options.out, options.device)
    for name in names:
        for setup in options.setups or SETUPS:
            with tempfile.TemporaryDirectory() as folder:
                model = resolve(name, Path(folder) / "model", options.device)
                run(model, SETUPS[setup], options, report, Path(folder))
    sys.exit(report.close())


if __name__ == "__main__":
    main()
