"""Tables of runs for ``corevital calibrate`` and ``evaluate``: CSV, Parquet, or a store; and their labels."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital_otel.cli import CommandError
from corevital_otel.risk.table import Runs
from corevital_otel.store.reader import StoreError, StoreReader

Table = dict[str, list[Any]]

_SQLITE: Final = b"SQLite format 3\x00"
_PARQUET: Final = b"PAR1"
_IDS: Final = ("request_id", "gen_ai.response.id")
_TRUE: Final = ("1", "true", "yes", "y", "t")
_FALSE: Final = ("0", "false", "no", "n", "f")
_GOOD_WORDS: Final = ("correct", "is_correct", "success", "passed", "good", "ok", "right", "accepted", "accurate")
"""Columns of these names say that a run was good: there 0 is bad."""
_EVERYTHING: Final = 10_000_000
_NO_ROWS: Final = "it needs a line of column names, and a row for each run"


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled runs.

    Attributes:
        table: all columns of the labelled rows.
        runs: their features.
        bad: ``[n]``.
        rule: which value of the label was taken for bad, in words.
        left_out: how many rows were, by why.
    """

    table: Table
    runs: Runs
    bad: npt.NDArray[np.bool_]
    rule: str
    left_out: dict[str, int]

    def column(self, name: str) -> list[str]:
        """A column as text.

        Raises:
            CommandError: there is none.
        """
        return [str(cell) for cell in _column(self.table, name)]


def labelled(
    file: Path, label: str, *, labels: Path | None = None, bad: str | None = None, leave_out: Sequence[str] = ()
) -> Labelled:
    """Read a table and its labels.

    Args:
        file: CSV, Parquet or a store.
        label: the column of labels.
        labels: another table that has it, joined by request id.
        bad: the label's value of bad runs; None: 1 or true, or 0 or false where the column's name says good.
        leave_out: columns; rows where one is true are left out.

    Raises:
        CommandError: anything is wrong with them.
    """
    table = read(file)
    dropped: Counter[str] = Counter()
    if labels is not None:
        table, foreign = _joined(table, read(labels), label, file, labels)
        if foreign:
            dropped[f"of {labels}: their requests are not in {file}"] = foreign
    elif label not in table and _is_store(file):
        raise CommandError(f"a store has no labels: name a table with the columns request_id and {label} with --labels")
    cells = _column(table, label)
    wanted, rule = _rule(label, cells, bad)
    kept, marks = [], []
    excluded = {name: [_text(cell) == "1" for cell in _column(table, name)] for name in leave_out}
    runs = Runs.of(table)
    empty = ~np.any([np.isfinite(column) for column in runs.columns.values()], axis=0) if runs.columns else None
    if empty is None:
        raise CommandError(
            f"{file} has no feature columns: it needs some such as entropy_mean, entropy_max, surprisal_sum"
        )
    for i, cell in enumerate(cells):
        reason = next((f"`{name}` is true" for name, out in excluded.items() if out[i]), None)
        if reason is None and _text(cell) in ("", "none", "nan", "null"):
            reason = "without a label"
        if reason is None and empty[i]:
            reason = "without any feature"
        if reason is None:
            kept.append(i)
            marks.append(_text(cell) == wanted)
        else:
            dropped[reason] += 1
    if not kept:
        raise CommandError(f"{file} has no labelled rows: {_counts(dropped)}; fill in the column {label!r}")
    rows = np.array(kept)
    return Labelled(
        {name: [column[i] for i in kept] for name, column in table.items()},
        runs.take(rows),
        np.array(marks),
        rule,
        dict(dropped),
    )


def read(path: Path) -> Table:
    """A table's columns, by their names. Of a store: each report's columns and its attributes.

    Raises:
        CommandError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE))
    except OSError as error:
        raise CommandError(
            f"{path} cannot be read ({error.strerror}): name a CSV or Parquet file, or a store"
        ) from None
    if head == _SQLITE:
        return _store(path)
    if head[:4] == _PARQUET:
        return _parquet(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): save it as CSV in UTF-8"
        ) from None
    except csv.Error as error:
        raise CommandError(f"{path} is no CSV ({error}): name a CSV or Parquet file, or a store") from None
    if not rows or not reader.fieldnames:
        raise CommandError(f"{path} has no rows: {_NO_ROWS}")
    if twice := [name for name, count in Counter(reader.fieldnames).items() if name and count > 1]:
        raise CommandError(f"{path} has more than one column {twice[0]!r}: leave one of them")
    return {name: [row.get(name) for row in rows] for name in reader.fieldnames}


def _is_store(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _store(path: Path) -> Table:
    try:
        reports = StoreReader(path).list_reports(limit=_EVERYTHING)
    except StoreError as error:
        raise CommandError(str(error)) from None
    if not reports:
        raise CommandError(f"the store {path} has no requests yet: serve some first")
    columns = ("request_id", "sequence", "model", "finish_reason", "output_tokens", "risk_score")
    table: Table = {name: [getattr(report, name) for report in reports] for name in columns}
    names = dict.fromkeys(name for report in reports for name in report.summary)
    return table | {name: [report.summary.get(name) for report in reports] for name in names}


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError:
        raise CommandError("Parquet needs pyarrow: pip install 'corevital[calibrate]', or use CSV") from None
    try:
        found: Table = parquet.read_table(path).to_pydict()
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} is damaged ({error}): write it anew") from None
    if not any(found.values()):
        raise CommandError(f"{path} has no rows: {_NO_ROWS}")
    return found


def _joined(table: Table, labels: Table, label: str, file: Path, labels_file: Path) -> tuple[Table, int]:
    """The table with its rows' labels, by request id, and by ``sequence`` where both have it; how many fit no row."""
    by = ["sequence"] if "sequence" in table and "sequence" in labels else []

    def keys(of: Table, name: str) -> list[tuple[str, ...]]:
        return list(zip(map(str, of[name]), *(map(_text, of[more]) for more in by), strict=True))

    given, asked = keys(labels, _id(labels, labels_file)), keys(table, _id(table, file))
    cells = _column(labels, label)
    places: dict[tuple[str, ...], int] = {}
    for i, key in enumerate(given):
        first = places.setdefault(key, i)
        if _text(cells[first]) != _text(cells[i]):
            raise CommandError(
                f"{labels_file} has both {cells[first]} and {cells[i]} as {label} of {' '.join(key)}: leave one of them"
            )
    at = [places.get(key) for key in asked]
    if all(i is None for i in at):
        raise CommandError(
            f"no request id of {labels_file} is in {file}: they are what the client sees, such as chatcmpl-…"
        )
    names = [label, *(name for name in labels if name not in table and name != label)]
    joined = {name: [None if i is None else labels[name][i] for i in at] for name in names}
    known = set(asked)
    return {**table, **joined}, sum(key not in known for key in given)


def _id(table: Table, file: Path) -> str:
    name = next((name for name in _IDS if name in table), None)
    if name is None:
        raise CommandError(f"{file} has no column request_id: labels are joined by it")
    return name


def _column(table: Mapping[str, list[Any]], name: str) -> list[Any]:
    if name not in table:
        known = ", ".join(sorted(table)[:12]) + (", …" if len(table) > 12 else "")
        raise CommandError(f"the table has no column {name!r}: it has {known}")
    return table[name]


def _rule(label: str, cells: list[Any], bad: str | None) -> tuple[str, str]:
    """The label's value that means bad, and what to say of it."""
    values = {_text(cell) for cell in cells} - {"", "none", "nan", "null"}
    if bad is not None:
        wanted = _text(bad)
        if wanted not in values:
            raise CommandError(f"--bad {bad!r} is no value of {label!r}: it has {', '.join(sorted(values)[:8])}")
        return wanted, f"{label} = {bad} is bad"
    if not values <= {"0", "1"}:
        raise CommandError(
            f"the label {label!r} has the values {', '.join(sorted(values)[:8])}: say which is bad with --bad"
        )
    if label.lower() in _GOOD_WORDS:
        return "0", f"{label} = 0 (false) is bad, by its name; say otherwise with --bad"
    return "1", f"{label} = 1 (true) is bad; say otherwise with --bad"


def _text(cell: Any) -> str:
    """A cell, comparable: numbers and truth values as 0 and 1, text in lower case."""
    text = str(cell).strip().lower()
    if text in _TRUE or text in _FALSE:
        return str(int(text in _TRUE))
    try:
        value = float(text)
    except ValueError:
        return text
    return "nan" if math.isnan(value) else f"{value:g}"


def _counts(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in dropped.items())
