"""The benchmark's table: one row per request, with the features in the store, a label, a group, and its set."""

from __future__ import annotations

import csv
import itertools
import tempfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from integration.bench.risk import peer, tasks
from integration.bench.risk.serve import serve

from corevital_otel.conventions import FEATURES
from corevital_otel.risk.table import Runs

CALIBRATION, TEST = 800, 1200
"""Requests of a seed: to calibrate on, and held out."""
TEMPERATURE = 0.7
_MAX_TOKENS = 80


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length: ``kind``, ``set`` (``calibration`` or ``test``), ``part`` (``whole``, or ``half`` for
    the first half of the tokens), ``wrong``, ``planted`` (0, or the number of the planted error), ``peer`` (the peer's
    score) and the features."""

    columns: dict[str, npt.NDArray[Any]]

    def where(self, **values: str) -> Table:
        """The rows whose columns have these values."""
        of = np.logical_and.reduce([self.columns[name] == value for name, value in values.items()])
        return Table({name: column[of] for name, column in self.columns.items()})

    def thinned(self, every: int) -> Table:
        """With each n-th planted error only, n being ``every``; 0: without any."""
        kept = (self.columns["planted"].astype(int) % every == 0) if every else False
        of = ~self.planted | kept
        return Table({name: column[of] for name, column in self.columns.items()})

    def first(self, n: int) -> Table:
        return Table({name: column[:n] for name, column in self.columns.items()})

    @property
    def runs(self) -> Runs:
        return Runs.of(self.columns)

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        return self.columns["wrong"] == "1"

    @property
    def planted(self) -> npt.NDArray[np.bool_]:
        return self.columns["planted"] != "0"


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as CSV, numbers with six digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{value:.6g}" if isinstance(value, float) else value for k, value in row.items()})


def read(path: Path) -> Table:
    """Read what :func:`write` wrote."""
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    return Table(dict(zip(names, np.array(rows).T, strict=True)))


def questions(seed: int) -> list[tuple[str, tasks.Task]]:
    """The tasks of a seed with their sets. No prompt is in both: its checksum says to which it belongs."""
    found: dict[str, list[tasks.Task]] = {"calibration": [], "test": []}
    wanted = {"calibration": CALIBRATION // len(tasks.KINDS), "test": TEST // len(tasks.KINDS)}
    count: Counter[tuple[str, str]] = Counter()
    for task in tasks.draw(f"questions {seed}"):
        name = "test" if zlib.crc32(f"{seed} {task.prompt}".encode()) % 2 else "calibration"
        if count[name, task.kind] < wanted[name]:
            count[name, task.kind] += 1
            found[name].append(task)
        elif count.total() == CALIBRATION + TEST:
            break
    return list(itertools.chain.from_iterable([(name, task) for task in some] for name, some in found.items()))


def measure(seed: int, model: Path) -> list[dict[str, Any]]:
    """Ask a model its questions through vLLM and return a row for each answer and one for each answer's first half.

    Truncated answers are left out: that is a flag, and no answer.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    asked = questions(seed)
    params = {"temperature": TEMPERATURE, "max_tokens": _MAX_TOKENS}
    requests = [(f"{task.prompt}\n", {**params, "seed": number}) for number, (_, task) in enumerate(asked)]
    with tempfile.TemporaryDirectory() as folder:
        answers = serve(Path(folder), model, requests, halve=True)
    rows = []
    planted = itertools.count(1)
    for number, (name, task) in enumerate(asked):
        whole, half = answers[number], answers[number + len(asked)]
        if whole[1].finish_reason != "stop":
            continue
        if half[0] != whole[0][: len(half[0])]:
            raise RuntimeError(f"request {number}: asked for the half of its tokens it gave others")
        wrong = not tasks.right(task, tokenizer.decode(whole[0]))
        mark = next(planted) if task.planted else 0
        for part, (_, report) in (("whole", whole), ("half", half)):
            row = {"kind": task.kind, "set": name, "part": part, "wrong": int(wrong), "planted": mark}
            row["peer"] = peer.risk(report.series, report.flags)
            rows.append(row | {attribute: report.summary.get(attribute) for attribute in FEATURES.values()})
    return rows
