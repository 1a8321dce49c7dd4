"""A store's rows as a table in a file: Parquet, CSV or JSON Lines. Row by row, in constant memory.

All three have the same columns: those of :class:`corevital_otel.store.scan.RowColumns`, ``flags``, one for each
attribute in any ``summary``, and for series ``series_entropy``, ``series_surprisal``, ``series_margin`` and
``series_topk_mass``, with one value for each token, null where not known.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, BinaryIO, Final

import numpy as np
import pydantic_core

from corevital.text import printable
from corevital_otel.store import cells
from corevital_otel.store.files import StoreError
from corevital_otel.store.scan import Row, RowColumns, Scan

FORMATS: Final = ("parquet", "csv", "jsonl")
SERIES: Final = ("entropy", "surprisal", "margin", "topk_mass")
COLUMNS: Final = (*RowColumns.model_fields, "flags")

_MOST_ATTRIBUTES: Final = 2000
_MOST_SHAPES: Final = 1000
_BATCH_ROWS: Final = 1000
_BATCH_TOKENS: Final = 200_000
_GROUP_BYTES: Final = 16 * 2**20
"""Bytes of a Parquet file's row group before compression, about: so much is held in memory."""
_TYPES: Final = {bool: "bool", int: "int", float: "double", str: "text"}

Progress = Callable[[int], None]


def attribute_kinds(scan: Scan, progress: Progress = lambda rows: None) -> dict[str, str]:
    """The attributes in the store's summaries, in order of their names, and what their values are.

    Returns:
        For each attribute ``bool``, ``int``, ``double``, ``text``, ``texts`` (a list), or ``json``: anything else.

    Raises:
        StoreError: the store cannot be read, or there are more attributes than a table can have.
    """
    kinds: dict[str, set[str]] = {}
    shapes: dict[tuple[tuple[str, ...], tuple[type, ...]], list[str]] = {}
    for number, summary in enumerate(scan.summaries()):
        progress(number)
        try:
            found = pydantic_core.from_json(summary) if isinstance(summary, str) else None
        except ValueError:
            continue
        if not isinstance(found, dict):
            continue
        shape = (tuple(found), tuple(map(type, found.values())))
        if (lists := shapes.get(shape)) is None:  # most rows have the same
            if len(shapes) >= _MOST_SHAPES:
                shapes.clear()
            shapes[shape] = lists = [name for name, value in found.items() if isinstance(value, list)]
            for name, value in found.items():
                if type(value) in _TYPES:
                    kinds.setdefault(name, set()).add(_TYPES[type(value)])
            if len(kinds) > _MOST_ATTRIBUTES:
                raise StoreError(f"the store has more than {_MOST_ATTRIBUTES} different attributes: export it as jsonl")
        for name in lists:
            texts = all(isinstance(part, str) for part in found[name])
            kinds.setdefault(name, set()).add("texts" if texts else "json")
    return {name: _common(kinds[name]) for name in sorted(kinds)}


def _common(kinds: set[str]) -> str:
    if kinds == {"int", "double"}:
        return "double"
    return kinds.pop() if len(kinds) == 1 else "json"


def write(
    scan: Scan, file: BinaryIO, kind: str, *, series: bool = False, progress: Progress = lambda rows: None
) -> int:
    """Write the rows of a store as a table. Damaged ones are left out, and counted in the scan.

    Args:
        scan: the rows.
        file: where to.
        kind: one of :data:`FORMATS`; ``parquet`` needs pyarrow.
        series: whether the table has the series too.
        progress: called with the number of rows read so far; twice as many for a format that is read twice.

    Returns:
        How many rows were written.

    Raises:
        StoreError: the store cannot be read.
        ImportError: pyarrow is not installed.
        OSError: the file cannot be written.
    """
    if kind == "parquet":
        import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401 - raise before the work
    if kind == "jsonl":
        return _jsonl(_counted(scan.rows(series=series), progress), file, series)
    kinds = attribute_kinds(scan, progress)
    rows = _counted(scan.rows(series=series), lambda number: progress(scan.total + number))
    return (_csv if kind == "csv" else _parquet)(rows, file, kinds, series)


def _counted(rows: Iterable[Row], progress: Progress) -> Iterator[Row]:
    for number, row in enumerate(rows):
        progress(number)
        yield row


@lru_cache(_MOST_ATTRIBUTES)
def _column(attribute: str) -> str:
    """The name of an attribute's column. Our attributes have a dot in their names."""
    taken = attribute.lower() in COLUMNS or attribute.lower().startswith("series_")
    return f"summary.{attribute}" if taken else attribute


def _jsonl(rows: Iterable[Row], file: BinaryIO, series: bool) -> int:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007 - the count is the result
        line = {**row.columns, "flags": row.flags}
        line |= {_column(name): value for name, value in row.attributes.items()}
        if series:
            line |= {f"series_{name}": values.tolist() for name, values in _series(row)}
        file.write(pydantic_core.to_json(line, inf_nan_mode="null") + b"\n")
    return count


def _csv(rows: Iterable[Row], file: BinaryIO, kinds: Mapping[str, str], series: bool) -> int:
    stream = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        writer = csv.writer(stream)
        names = [*COLUMNS, *map(_column, kinds), *(f"series_{name}" for name in SERIES if series)]
        writer.writerow(map(cells.text, names))
        count = 0
        for count, row in enumerate(rows, 1):  # noqa: B007
            _require_known(row, kinds)
            values = [*row.columns.values(), row.flags, *map(row.attributes.get, kinds)]
            if series:
                values += [values.tolist() for _, values in _series(row)] or [None] * len(SERIES)
            writer.writerow(map(cells.cell, values))
    finally:
        stream.detach()
    return count


def _parquet(rows: Iterable[Row], file: BinaryIO, kinds: Mapping[str, str], series: bool) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    schema = arrow_schema(kinds, series)
    count = 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        group: list[Any] = []
        for batch in _batches(rows):
            columns = [
                [row.ended if name == "created_at_utc" else row.columns[name] for row in batch]
                for name in RowColumns.model_fields
            ]
            columns.append([row.flags for row in batch])
            for row in batch:
                _require_known(row, kinds)
            columns += [[_arrow_value(row.attributes.get(name), kind) for row in batch] for name, kind in kinds.items()]
            found = [dict(_series(row)) for row in batch] if series else []
            try:
                arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=False)]
                arrays += [_arrow_lists([one.get(name) for one in found]) for name in SERIES if series]
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise _changed(error) from None
            group.append(pa.record_batch(arrays, schema=schema))
            count += len(batch)
            if sum(part.nbytes for part in group) > _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group), row_group_size=count)
                group = []
        if group:
            writer.write_table(pa.Table.from_batches(group), row_group_size=count)
    return count


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    tokens = 0
    for row in rows:
        batch.append(row)
        tokens += 0 if row.series is None else len(row.series)
        if len(batch) >= _BATCH_ROWS or tokens > _BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def arrow_schema(kinds: Mapping[str, str], series: bool) -> Any:
    """The ``pyarrow.Schema`` of a table with attributes of these kinds."""
    import pyarrow as pa

    types = {
        "bool": pa.bool_(),
        "int": pa.int64(),
        "double": pa.float64(),
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "json": pa.string(),
    }
    numbers = {"sequence", "prompt_tokens", "output_tokens", "start_ns", "end_ns"}
    plain = {name: "int" if name in numbers else "text" for name in RowColumns.model_fields}
    fields = {name: types[kind] for name, kind in (plain | {"risk_score": "double", "flags": "texts"}).items()}
    fields["created_at_utc"] = pa.timestamp("ms")
    fields |= {_column(name): types[kind] for name, kind in kinds.items()}
    if series:
        fields |= {f"series_{name}": pa.list_(pa.float32()) for name in SERIES}
    return pa.schema(list(fields.items()))


def _arrow_value(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "double":
        return float(value)
    return pydantic_core.to_json(value).decode() if kind == "json" else value


def _arrow_lists(found: list[Any]) -> Any:
    """Arrays as an Arrow array of lists, null where there is none; NaN becomes null."""
    import pyarrow as pa

    lengths = [0 if values is None else len(values) for values in found]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.concatenate([np.empty(0, np.float32), *(values for values in found if values is not None)])
    missing = np.array([values is None for values in found])
    values = pa.array(flat.astype(np.float32), pa.float32(), from_pandas=True)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(missing))


def _series(row: Row) -> Iterator[tuple[str, Any]]:
    if row.series is not None:
        for name in SERIES:
            yield name, getattr(row.series, name)


def _require_known(row: Row, kinds: Mapping[str, str]) -> None:
    if unknown := next((name for name in row.attributes if name not in kinds), None):
        raise _changed(f"new attribute {printable(unknown, 60)}")


def _changed(why: object) -> StoreError:
    return StoreError(f"the store was replaced while it was read ({printable(why, 100)}): run this again")
