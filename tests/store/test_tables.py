"""A store's rows as Parquet, CSV and JSON Lines: the same table, complete, and without formulas."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport, Series
from corevital_otel.spans.record import record_of
from corevital_otel.store import cells, tables
from corevital_otel.store.files import StoreError
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.scan import Scan
from corevital_otel.store.writer import StoreWriter

from .conftest import ids, opened, query

Make = Callable[..., RequestReport]
Read = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def store(tmp_path: Path, report: Make) -> Path:
    """Four requests; the third has no series."""
    path = tmp_path / "corevital.db"
    writer = StoreWriter(path, 36500, 1024, Counters())
    for number in range(4):
        made = report(tokens=number + 1, request_id=f"r{number}", **({"series": None} if number == 2 else {}))
        writer.put(record_of(made, ids(number)))
    writer.close(10)
    return path


def change(path: Path, request_id: str, **attributes: object) -> None:
    """Add attributes to a row's summary."""
    ((summary,),) = query(path, "SELECT summary FROM reports WHERE request_id = ?", request_id)
    text = json.dumps({**json.loads(str(summary)), **attributes})
    query(path, "UPDATE reports SET summary = ? WHERE request_id = ?", text, request_id)


def export(path: Path, kind: str, *, series: bool = False, since: timedelta | None = None) -> bytes:
    file = io.BytesIO()
    scan = Scan(path, since)
    count = tables.write(scan, file, kind, series=series)
    assert count == len(read(kind, file.getvalue()))
    return file.getvalue()


def read(kind: str, data: bytes) -> list[dict[str, Any]]:
    """The rows of a table, without what is null or empty."""
    if kind == "parquet":
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    elif kind == "csv":
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    else:
        rows = [json.loads(line) for line in data.decode().splitlines()]
    return [{name: value for name, value in row.items() if value not in (None, "")} for row in rows]


def plain(value: Any) -> Any:
    """A value of any of the formats in one form: texts of CSV parsed, times as texts, NaN as None."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return value.removesuffix("Z")
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return None if math.isnan(value) else pytest.approx(value)
    return value.isoformat(timespec="milliseconds") if hasattr(value, "isoformat") else value


@pytest.mark.parametrize("kind", tables.FORMATS)
def test_every_format_has_every_column_attribute_and_series(store: Path, kind: str) -> None:
    change(store, "r1", **{"own.mixed": 3, "own.number": 1, "own.list": ["a", "b"], "own.values": [1, 2.5]})
    change(store, "r2", **{"own.mixed": "text", "own.number": 0.5, "own.flag": True, "model": "in the summary"})
    with opened(store) as connection:
        times = connection.execute("SELECT parent_span_id, start_ns, end_ns FROM reports ORDER BY id").fetchall()
    expected = []
    for number, (parent, start, end) in enumerate(times):
        (stored,) = StoreReader(store).get(f"r{number}")
        row = stored.as_json()
        attributes, series = row.pop("summary"), row.pop("series") or {}
        attributes = {{"model": "summary.model"}.get(name, name): value for name, value in attributes.items()}
        row |= {"parent_span_id": parent, "start_ns": start, "end_ns": end, **attributes}
        row |= {f"series_{name}": values for name, values in series.items()}
        expected.append({name: plain(value) for name, value in row.items() if value is not None})
    found = read(kind, export(store, kind, series=True))
    assert [{name: plain(value) for name, value in row.items()} for row in found] == expected
    assert not any(name.startswith("series_") for row in read(kind, export(store, kind)) for name in row)


def test_parquet_has_the_types_of_the_values(store: Path) -> None:
    change(store, "r1", **{"own.number": 1, "own.mixed": 3})
    change(store, "r2", **{"own.number": 0.5, "own.mixed": [1]})
    schema = parquet.read_schema(io.BytesIO(export(store, "parquet", series=True)))
    types = {name: str(schema.field(name).type) for name in schema.names}
    expected = {
        "created_at_utc": "timestamp[ms]",
        "prompt_tokens": "int64",
        "risk_score": "double",
        "flags": "list<element: string>",
        "corevital.entropy.mean": "double",
        "corevital.health.truncated": "bool",
        "gen_ai.request.seed": "int64",
        "own.number": "double",
        "own.mixed": "string",
        "series_entropy": "list<element: float>",
    }
    assert {name: types[name] for name in expected} == expected


@pytest.mark.parametrize("kind", tables.FORMATS)
def test_a_value_that_is_not_known_is_null_in_a_series(tmp_path: Path, report: Make, kind: str) -> None:
    path = tmp_path / "c.db"
    values = np.array([1, math.nan, 2], np.float32)
    writer = StoreWriter(path, 36500, 1024, Counters())
    series = Series(entropy=values, surprisal=values, margin=values, topk_mass=values)
    writer.put(record_of(report(series=series), ids(0)))
    writer.close(10)
    (row,) = read(kind, export(path, kind, series=True))
    assert plain(row["series_margin"]) == [1, None, 2]


@pytest.mark.parametrize("kind", tables.FORMATS)
def test_damaged_rows_are_left_out_and_counted(store: Path, kind: str) -> None:
    query(store, "UPDATE reports SET summary = '{' WHERE request_id = 'r1'")
    query(store, "UPDATE reports SET created_at_utc = '2026-13-01T00:00:00.000Z' WHERE request_id = 'r2'")
    query(store, "UPDATE reports SET series = x'0102' WHERE request_id = 'r3'")
    scan = Scan(store)
    file = io.BytesIO()
    assert tables.write(scan, file, kind, series=True) == 1
    assert [row["request_id"] for row in read(kind, file.getvalue())] == ["r0"]
    assert scan.damaged == 3
    assert "row 2, summary: " in scan.damage


@pytest.mark.parametrize("kind", tables.FORMATS)
def test_a_store_without_requests_gives_a_table_without_rows(store: Path, kind: str) -> None:
    query(store, "DELETE FROM reports")
    assert read(kind, export(store, kind)) == []


def test_rows_are_chosen_by_their_end_and_come_oldest_first(store: Path) -> None:
    for number, time in enumerate(("-2 hours", "-3 hours", "-10 minutes", "-20 minutes")):
        moment = "UPDATE reports SET created_at_utc = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?) WHERE request_id = ?"
        query(store, moment, time, f"r{number}")
    assert [row["request_id"] for row in read("jsonl", export(store, "jsonl"))] == ["r1", "r0", "r3", "r2"]
    recent = read("csv", export(store, "csv", since=timedelta(hours=1)))
    assert [row["request_id"] for row in recent] == ["r3", "r2"]


def test_a_server_can_write_prune_and_checkpoint_between_two_rows(store: Path) -> None:
    scan = Scan(store)
    rows = scan.rows()
    assert next(rows).columns["request_id"] == "r0"
    with opened(store) as connection:
        connection.execute("DELETE FROM reports WHERE request_id = 'r2'")
        connection.execute("UPDATE reports SET request_id = 'later' WHERE request_id = 'r3'")
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "nobody reads it now"
    assert [row.columns["request_id"] for row in rows] == ["r1", "later"]
    assert scan.damaged == 0


def test_a_store_that_is_replaced_meanwhile_is_one_line(store: Path) -> None:
    scan = Scan(store)
    kinds = tables.attribute_kinds(scan)
    change(store, "r3", **{"own.new": 1})
    assert "own.new" not in kinds
    with pytest.raises(StoreError, match=r"was replaced while it was read \(new attribute own.new\): run this again"):
        tables._csv(scan.rows(), io.BytesIO(), kinds, series=False)


FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", '"=1', "＝1", "x;=cmd|'/c calc'!A1", "x\n=1", "\0=1")  # noqa: RUF001


@pytest.mark.parametrize("value", FORMULAS)
def test_no_text_of_a_csv_file_starts_a_formula(store: Path, value: str) -> None:
    query(store, "UPDATE reports SET model = ?, flags = ? WHERE request_id = 'r0'", value, json.dumps([f";{value}"]))
    change(store, "r1", **{value: value, "own.list": [value, f";{value}"]})
    text = export(store, "csv").decode()
    for line in csv.reader(io.StringIO(text, newline="")):
        for whole in line:
            for part in whole.replace("\r", ";").replace("\n", ";").replace("\t", ";").split(";"):
                first = part.lstrip(" \0\"'")[:1]
                assert first not in tuple("=+-@＝") or part.lstrip(' \0"')[:1] == "'" or is_number(part), whole  # noqa: RUF001


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def test_other_cells_are_unchanged() -> None:
    for value in ("chatcmpl-1", "a=b", "1.5; 2", "e-mail@host", "", "é"):
        assert cells.text(value) == value
    assert [cells.cell(value) for value in (None, True, -0.5, 3, b"\x01", ["a", 1])] == [
        "", "true", "-0.5", "3", "01", '["a",1]',
    ]  # fmt: skip


def test_a_table_has_a_bounded_number_of_columns(store: Path) -> None:
    change(store, "r1", **{f"own.{number}": 1 for number in range(2001)})
    with pytest.raises(StoreError, match="more than 2000 different attributes: export it as jsonl"):
        export(store, "csv")
    assert len(read("jsonl", export(store, "jsonl"))) == 4
