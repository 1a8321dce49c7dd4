"""The benchmark's table: one row per answer, with what the store has of it and whether it was right."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from integration.bench.real.ask import answers
from integration.bench.real.tasks import right

from corevital_otel.conventions import FEATURES
from corevital_otel.risk.table import Runs

Array = npt.NDArray[Any]

_KEPT: Final = ("form", "kind", "temperature", "finish", "prompt_tokens", "wrong", "flags")


def client_id(row_id: str) -> str:
    """The id that the client got: a completion's has its number behind it in the store."""
    return row_id[:-2] if row_id.startswith("cmpl-") and row_id.endswith("-0") else row_id


def _select(folder: Path, columns: str) -> list[tuple[Any, ...]]:
    """Columns of the requests in the store; none where there is no store yet."""
    path = folder / "corevital.db"
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(f"SELECT {columns} FROM reports").fetchall()  # noqa: S608 - text of the test


def stored(folder: Path) -> set[str]:
    """Ids in the store, as clients see them."""
    return {client_id(name) for (name,) in _select(folder, "request_id")}


def _summaries(folder: Path) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Attributes and flags of each request in the store, by the client's id."""
    rows = _select(folder, "request_id, summary, flags")
    return {client_id(name): (json.loads(summary), json.loads(flags)) for name, summary, flags in rows}


@dataclass(frozen=True, slots=True)
class Rows:
    """Answers in the order in which they came.

    Attributes:
        columns: ``form`` (``long``, ``chat``, ``fewshot``), ``kind``, ``temperature``, ``finish``, ``prompt_tokens``,
            ``wrong`` (False for a long answer), ``flags`` (names joined by spaces), each ``[n]``; of a folder also
            ``text`` and ``id``.
        runs: the features.
    """

    columns: dict[str, Array]
    runs: Runs

    def __len__(self) -> int:
        return len(self.columns["form"])

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def take(self, which: Array) -> Rows:
        """Some of the rows, by index or mask."""
        return Rows({name: column[which] for name, column in self.columns.items()}, self.runs.take(which))

    def where(self, condition: Callable[[Rows], Array]) -> Rows:
        """The rows for which a condition on the columns holds."""
        return self.take(condition(self))

    @property
    def groups(self) -> list[str]:
        """Within which scores are compared: the task, at a temperature."""
        return [f"{kind} {t:g}" for kind, t in zip(self["kind"], self["temperature"], strict=True)]


def read(folder: Path) -> Rows:
    """The rows of a folder, and only of answers that the store has."""
    summaries = _summaries(folder)
    found = sorted((one for one in answers(folder / "answers.jsonl").values() if one["id"] in summaries), key=_time)
    attributes = [summaries[one["id"]][0] for one in found]
    columns = {
        "form": np.array([one["form"] for one in found]),
        "kind": np.array([one["kind"] for one in found]),
        "temperature": np.array([one["temperature"] for one in found]),
        "finish": np.array([one["finish"] for one in found]),
        "prompt_tokens": np.array([of["gen_ai.usage.input_tokens"] for of in attributes]),
        "wrong": np.array([bool(one["check"]) and not right(one["check"], one["gold"], one["text"]) for one in found]),
        "flags": np.array([" ".join(summaries[one["id"]][1]) for one in found]),
        "text": np.array([one["text"] for one in found], object),
        "id": np.array([one["id"] for one in found], object),
    }
    return Rows(columns, Runs.of({name: [of.get(name) for of in attributes] for name in FEATURES.values()}))


def write(rows: Rows, path: Path) -> None:
    """Write the rows without their texts and ids as CSV, numbers with six digits."""
    columns = {name: rows[name].tolist() for name in _KEPT}
    columns |= {name: [f"{value:.6g}" for value in column.tolist()] for name, column in rows.runs.columns.items()}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def recorded(path: Path) -> Rows:
    """Read what :func:`write` wrote."""
    with path.open(newline="") as file:
        names, *lines = csv.reader(file)
    table: dict[str, Array] = dict(zip(names, np.array(lines).T, strict=True))
    columns: dict[str, Array] = {name: table[name] for name in _KEPT}
    columns |= {"temperature": table["temperature"].astype(float), "prompt_tokens": table["prompt_tokens"].astype(int)}
    columns["wrong"] = table["wrong"] == "True"
    return Rows(columns, Runs.of({name: table[name] for name in FEATURES}))


def _time(one: dict[str, Any]) -> float:
    return float(one["at"])
