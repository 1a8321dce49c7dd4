"""Tables of runs for ``corevital calibrate`` and ``evaluate``: CSV, Parquet, or a store; and their labels."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import numpy.typing as npt

from corevital.supported import CHECKED, STAGES
from corevital.text import printable
from corevital_otel.cli.common import warn_of_damage
from corevital_otel.cli.errors import CommandError
from corevital_otel.conventions import ASSESSED, FEATURES, RISK_SEGMENT
from corevital_otel.risk.table import Runs
from corevital_otel.store.reader import StoreError, StoreReader

Table = dict[str, list[Any]]

_SQLITE: Final = b"SQLite format 3\x00"
_PARQUET: Final = b"PAR1"
_IDS: Final = ("request_id", "gen_ai.response.id")
_TRUE: Final = ("1", "true", "yes", "y", "t")
_FALSE: Final = ("0", "false", "no", "n", "f")
_GOOD_WORDS: Final = ("correct", "is_correct", "success", "passed", "good", "ok", "right", "accepted", "accurate")
"""In columns of these names 1 means good, so 0 is bad."""
_EVERYTHING: Final = 10_000_000
_MAX_CELLS: Final = 20_000_000
_MAX_COLUMNS: Final = 10_000
_MAX_LINE: Final = 1 << 20
"""Characters of a line of CSV."""
_MAX_BYTES: Final = 1 << 30
"""Bytes of a Parquet file's values, unpacked."""
_BATCH_CELLS: Final = 1_000_000
_SAMPLE: Final = 1000
_LABELS: Final = 5
"""Values that a column of labels has at most, in so many rows."""
_CELL: Final = 60
"""Characters of a name or a cell in an error's line."""
_CAUSE: Final = 200
_NO_ROWS: Final = "it needs a line of column names, and a row for each run"


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled runs.

    Attributes:
        table: all columns of the labelled rows.
        runs: their features.
        bad: ``[n]``.
        rule: which value of the label means bad, in words.
        left_out: number of rows left out, by reason.
    """

    table: Table
    runs: Runs
    bad: npt.NDArray[np.bool_]
    rule: str
    left_out: dict[str, int]

    def column(self, name: str) -> list[str]:
        """A column as text.

        Raises:
            CommandError: no such column.
        """
        return [str(cell) for cell in _column(self.table, name)]

    def engines(self) -> tuple[str, ...]:
        """The engines that the rows come from, sorted; empty where a row does not say."""
        return self._all_of(("corevital.engine", "engine"), CHECKED)

    def stages(self) -> tuple[str, ...]:
        """The stages of the logits, likewise."""
        return self._all_of(("corevital.logits.stage", "stage"), STAGES)

    def _all_of(self, columns: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
        cells = next((self.column(name) for name in columns if name in self.table), [""])
        found = set(cells)
        return tuple(sorted(found)) if found <= set(known) else ()  # else it may be another thing of this name


def labelled(
    file: Path, label: str, *, labels: Path | None = None, bad: str | None = None, leave_out: Sequence[str] = ()
) -> Labelled:
    """Read a table and its labels.

    Args:
        file: CSV, Parquet or a store.
        label: the column of labels.
        labels: another table that has it, joined by request id.
        bad: the label's value for bad runs; None: 1 or true, or 0 or false where the column's name means good.
        leave_out: columns; rows where one is true are left out.

    Raises:
        CommandError: a table or a label cannot be used.
    """
    table = read(file)
    dropped: Counter[str] = Counter()
    if labels is not None:
        table, foreign = _joined(table, read(labels), label, file, labels)
        if foreign:
            dropped[f"in {labels} only: {file} has no such request"] = foreign
    elif label not in table and _is_store(file):
        raise CommandError(
            f"a store has no labels: name a table with the columns request_id and {_shown(label)} with --labels"
        )
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
        reason = next((f"`{_shown(name)}` is true" for name, out in excluded.items() if out[i]), None)
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
        raise CommandError(f"{file} has no labelled rows: {_counts(dropped)}; fill in the column {_shown(label)!r}")
    rows = np.array(kept)
    return Labelled(
        {name: [column[i] for i in kept] for name, column in table.items()},
        runs.take(rows),
        np.array(marks),
        rule,
        dict(dropped),
    )


def read(path: Path) -> Table:
    """A table's columns by name. A store has the columns of its reports and their attributes.

    Raises:
        CommandError: the file cannot be read, or is too large.
    """
    wanted = "name a CSV or Parquet file, or a store"
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe would block
            raise CommandError(f"{_shown(path)} is not a regular file: {wanted}")
        with path.open("rb") as file:
            head = file.read(len(_SQLITE))
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise CommandError(f"{_shown(path)} cannot be read ({cause}): {wanted}") from None
    if head == _SQLITE:
        return _store(path)
    return _parquet(path) if head[:4] == _PARQUET else _csv(path)


def _csv(path: Path) -> Table:
    wanted = "name a CSV or Parquet file, or a store"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(_lines(file, path))
            names = next(filter(None, reader), [])
            _distinct(names, path)
            columns: list[list[Any]] = [[] for _ in names]
            for row in filter(None, reader):
                _within(len(columns[0]) + 1, len(names), path)
                for column, value in zip_longest(columns, row[: len(names)]):
                    column.append(value)
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{_shown(path)} is not UTF-8 text ({error.reason} at byte {error.start}): save it as CSV in UTF-8"
        ) from None
    except csv.Error as error:
        raise CommandError(f"{_shown(path)} is not CSV ({error}): {wanted}") from None
    if not columns or not columns[0]:
        raise CommandError(f"{_shown(path)} has no rows: {_NO_ROWS}")
    return dict(zip(names, columns, strict=True))


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise CommandError(f"{_shown(path)} has a line of more than {_MAX_LINE:,} characters: is it a table?")
        yield line


def _distinct(names: Sequence[str], path: Path) -> None:
    if len(names) > _MAX_COLUMNS:
        raise CommandError(f"{_shown(path)} has {len(names):,} columns: keep at most {_MAX_COLUMNS:,}")
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise CommandError(f"{_shown(path)} has more than one column {_shown(twice[0])!r}: keep one of them")


def _within(rows: int, columns: int, path: Path) -> None:
    if rows * columns > _MAX_CELLS:
        raise CommandError(f"{_shown(path)} has more than {_MAX_CELLS:,} cells: leave out rows or columns")


def _is_store(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _store(path: Path) -> Table:
    reader = StoreReader(path)
    try:
        reports = reader.list_reports(limit=_EVERYTHING)
    except StoreError as error:
        raise CommandError(str(error)) from None
    warn_of_damage(reader)
    if not reports:
        raise CommandError(f"the store {path} has no requests yet: serve some first")
    columns = ("request_id", "sequence", "model", "finish_reason", "output_tokens", "risk_score")
    table: Table = {name: [getattr(report, name) for report in reports] for name in columns}
    rows = [_assessed(report.summary) for report in reports]
    names = dict.fromkeys(name for row in rows for name in row)
    return table | {name: [row.get(name) for row in rows] for name in names}


def _assessed(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A store's row with the features that its risk is of: those of the answer, where they are known."""
    if RISK_SEGMENT not in row:
        return row
    return {**row, **{FEATURES[name]: row.get(attribute) for name, attribute in ASSESSED.items()}}


def _parquet(path: Path) -> Table:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise CommandError("Parquet needs pyarrow: pip install 'corevital[calibrate]', or use CSV") from None
    try:
        with parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            _distinct(schema.names, path)
            names = [field.name for field in schema if _is_flat(field.type)]
            _within(rows, len(names), path)
            if sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)) > _MAX_BYTES:
                raise CommandError(f"{_shown(path)} has more than {_MAX_BYTES >> 20:,} MiB unpacked: leave out columns")
            texts = [field.name for field in schema if _is_text(field.type)]
        columns: dict[str, list[Any]] = {name: [] for name in names}
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(max(1, _BATCH_CELLS // max(1, len(names))), columns=names):
                for name, values in zip(batch.schema.names, batch.columns, strict=True):
                    columns[name] += _cells(values)
    except (OSError, ValueError, LookupError, MemoryError, pyarrow.ArrowException) as error:
        cause = printable(" ".join(str(error).split()) or type(error).__name__, _CAUSE)
        raise CommandError(f"{_shown(path)} is damaged ({cause}): write it again") from None
    if not any(columns.values()):
        raise CommandError(f"{_shown(path)} has no rows: {_NO_ROWS}")
    return columns


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_flat(kind: Any) -> bool:
    """Whether values of this type can be features, labels or names: text, numbers, booleans and times."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return _is_text(kind) or (types.is_primitive(kind) and not types.is_fixed_size_binary(kind)) or types.is_null(kind)


def _cells(values: Any) -> list[Any]:
    """An Arrow array's values. A text that many rows share is unpacked once, to bound memory."""
    from pyarrow import types

    if not types.is_dictionary(values.type):
        return list(values.to_pylist())
    used = values.indices.unique().drop_null()
    known = dict(zip(used.to_pylist(), values.dictionary.take(used).to_pylist(), strict=True))
    return [known.get(index) for index in values.indices.to_pylist()]


def _shown(value: object) -> str:
    """An untrusted name or cell for an error message."""
    return printable(value, _CELL)


def _listed(values: Iterable[object], most: int) -> str:
    """At most ``most`` of the values, with an ellipsis if there are more."""
    some = list(islice(values, most + 1))
    return ", ".join(map(_shown, some[:most])) + (", …" if len(some) > most else "")


def _joined(table: Table, labels: Table, label: str, file: Path, labels_file: Path) -> tuple[Table, int]:
    """Join labels to a table by request id, and by ``sequence`` if both have it.

    Returns:
        The table with the labels, and the number of labels without a row.
    """
    by = ["sequence"] if "sequence" in table and "sequence" in labels else []

    def keys(of: Table, name: str) -> list[tuple[str, ...]]:
        return list(zip(map(str, of[name]), *(map(_text, of[more]) for more in by), strict=True))

    given, asked = keys(labels, _id(labels, labels_file)), keys(table, _id(table, file))
    cells = _column(labels, label)
    places: dict[tuple[str, ...], int] = {}
    for i, key in enumerate(given):
        first = places.setdefault(key, i)
        if _text(cells[first]) != _text(cells[i]):
            both = f"both {_shown(cells[first])} and {_shown(cells[i])} as {_shown(label)} of {_shown(' '.join(key))}"
            raise CommandError(f"{_shown(labels_file)} has {both}: keep one of them")
    at = [places.get(key) for key in asked]
    if all(i is None for i in at):
        raise CommandError(
            f"no request id of {labels_file} is in {file}: use the ids that clients see, such as chatcmpl-…"
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
        raise CommandError(f"the table has no column {_shown(name)!r}: it has {_listed(_likely(table, name), 12)}")
    return table[name]


def _likely(table: Mapping[str, list[Any]], name: str) -> list[str]:
    """A table's columns: those named alike, those that are not ours and may be labels, the rest of them, and ours."""
    alike = get_close_matches(name, list(table), 3)
    ours = {*FEATURES, *FEATURES.values()}

    def place(column: str) -> tuple[bool, bool, bool, str]:
        own = column in ours or column.startswith(("corevital.", "gen_ai."))
        some = {_text(cell) for cell in table[column][:_SAMPLE]} - {"", "none", "nan", "null"}
        return column not in alike, own, not 1 < len(some) <= _LABELS, column

    return sorted(table, key=place)


def _rule(label: str, cells: list[Any], bad: str | None) -> tuple[str, str]:
    """The label's value for bad runs, and the rule in words."""
    values = {_text(cell) for cell in cells} - {"", "none", "nan", "null"}
    known = _listed(sorted(values), 8)
    if bad is not None:
        wanted = _text(bad)
        if wanted not in values:
            raise CommandError(f"--bad {_shown(bad)!r} is not a value of {_shown(label)!r}: it has {known}")
        return wanted, f"{_shown(label)} = {_shown(bad)} is bad"
    if not values <= {"0", "1"}:
        raise CommandError(f"the label {_shown(label)!r} has the values {known}: name the bad one with --bad")
    if label.lower() in _GOOD_WORDS:
        return "0", f"{_shown(label)} = 0 (false) is bad, by the column's name; override with --bad"
    return "1", f"{_shown(label)} = 1 (true) is bad; override with --bad"


def _text(cell: Any) -> str:
    """A cell as comparable text: booleans as 0 and 1, numbers in one format, text in lower case."""
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
