"""Edited rows and prepared files: a result or one line, in bounded time and memory."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import record_of
from corevital_otel.store import files, series
from corevital_otel.store.outbox import Outbox
from corevital_otel.store.reader import StoreError, StoreReader
from corevital_otel.store.rows import Row
from corevital_otel.store.writer import StoreWriter

from .conftest import ids, opened, query

Make = Callable[..., RequestReport]
HOUR_NS = 3600 * 10**9

DAMAGED: list[tuple[str, Any]] = [
    *(("flags", value) for value in ("{", "3", "[" * 99_999, "[1]", '{"a": 1}', b"\xff", 3)),
    *(("summary", value) for value in ("[]", "", "{", '{"a":' * 99_999, "NaN", b"\x00\xff", "null", '"x"')),
    *(
        ("summary", json.dumps({name: value}))
        for name, value in (
            ("gen_ai.response.time_to_first_chunk", "x"),
            ("gen_ai.response.time_to_first_chunk", 10**400),
            ("corevital.risk.factors", "not a list"),
            ("corevital.risk.factors", [1]),
            ("corevital.risk.level", None),
            ("corevital.health.loop_onset", 0.5),
            ("corevital.health.high_entropy_steps", "many"),
            ("corevital.incomplete", {"a": 1}),
            ("unknown", [1, "x"]),
            ("unknown", [[]]),
        )
    ),
    ("summary", '{"corevital.entropy.mean": NaN}'),
    ("summary", "x" * (2**20 + 1)),
    ("risk_score", "high"),
    ("risk_score", 1e308),
    ("sequence", b"blob"),
    ("sequence", -1),
    ("prompt_tokens", "x"),
    ("output_tokens", 1.5),
    ("created_at_utc", "yesterday"),
    ("created_at_utc", 7),
    ("model", b"\xfe"),
    ("model", "m" * 5000),
    ("request_id", "r" * 5000),
    ("trace_id", b"z"),
]
ONLY_SPANS: list[tuple[str, Any]] = [
    ("trace_id", "zz"),
    ("trace_id", "0" * 32),
    ("trace_id", "-" + "1" * 31),
    ("span_id", "1" * 17),
    ("parent_span_id", "parent"),
    ("start_ns", None),
    ("start_ns", -1),
    ("end_ns", -1),
    ("series", b"\x01broken"),
    ("series", b"\x02"),
    ("series", "text"),
    ("summary", "{}"),
]


@pytest.fixture
def store(tmp_path: Path, report: Make) -> Path:
    """Rows ``good``, ``bad`` (the second) and ``last``, of spans that were never delivered."""
    path = tmp_path / "c.db"
    writer = StoreWriter(path, 36500, 1024, Counters(), {"service.name": "vllm"})
    for number, name in enumerate(("good", "bad", "last")):
        made = report(request_id=name, end_ns=time.time_ns() - 2 * HOUR_NS + number * 10**6)
        writer.put(record_of(made, ids(number, exported=True)))
    writer.close(10)
    return path


def spoil(path: Path, column: str, value: object) -> None:
    query(path, f"UPDATE reports SET {column} = ? WHERE request_id = 'bad'", value)  # noqa: S608 - text of the test


@pytest.mark.parametrize(("column", "value"), DAMAGED, ids=lambda value: repr(value)[:40])
def test_a_damaged_row_hides_no_other(store: Path, column: str, value: object) -> None:
    spoil(store, column, value)
    reader = StoreReader(store)
    assert [row.request_id for row in reader.list_reports()] == ["last", "good"]
    assert reader.damaged == 1
    assert f", {column}: " in reader.damage
    assert len(reader.damage) < 250
    assert reader.damage.isprintable()
    assert [row.request_id for row in reader.get("good")] == ["good"]
    assert reader.damaged == 0
    if column != "request_id":
        with pytest.raises(StoreError, match=r"^the store's row cannot be read \(row 2, \w+: .*\): restore a backup"):
            reader.get("bad")
    query(store, "DELETE FROM reports WHERE request_id IN ('good', 'last')")
    with pytest.raises(StoreError, match="the store's row cannot be read"):
        reader.list_reports()


@pytest.mark.parametrize(
    ("column", "value"),
    [*ONLY_SPANS, *((c, v) for c, v in DAMAGED if c in ("summary", "model"))],
    ids=lambda value: repr(value)[:40],
)
def test_a_damaged_span_is_left_out_of_what_is_sent(store: Path, column: str, value: object) -> None:
    spoil(store, column, value)
    with Outbox(store) as box:
        assert box.count() == 3
        assert [[span.row for span in batch] for batch in box.batches(200)] == [[1, 3]]
        assert box.damaged == 1
        assert f"row 2, {column}: " in box.damage


def test_a_damaged_resource_or_lesson_is_left_out_too(store: Path) -> None:
    query(store, "UPDATE resources SET attributes = '[]'")
    query(store, "INSERT INTO baseline (model, bucket, signals) VALUES ('m', '0', '[1,2,null,4]')")
    for signals in ("[1]", "{", '["x",2,3,4]', "[" * 99_999, b"\xff"):
        query(store, "INSERT INTO baseline (model, bucket, signals) VALUES ('m', '0', ?)", signals)
    with Outbox(store) as box:
        assert list(box.batches(200)) == []
        assert (box.damaged, "resource: not an object" in box.damage) == (3, True)
    reader = StoreReader(store)
    assert [row[:2] for row in reader.learned()] == [("m", "0")]
    assert reader.damaged == 5
    query(store, "INSERT INTO baseline (model, bucket, signals) VALUES ('m', '0', '[1,2,3,4,5,6]')")
    assert len(reader.learned()) == 1, "an older version's row is skipped"
    assert reader.damaged == 5, "and no damage"


def test_every_flag_is_found_beside_a_damaged_one(store: Path) -> None:
    spoil(store, "flags", "{")
    query(store, "UPDATE reports SET flags = '[\"truncated\"]' WHERE request_id = 'good'")
    assert [row.request_id for row in StoreReader(store).list_reports(flag="truncated")] == ["good"]


READ = """
import resource, sys
from pathlib import Path
from corevital_otel.store.outbox import Outbox
from corevital_otel.spans.record import record_of
from corevital_otel.store.reader import StoreReader
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reader = StoreReader(Path(sys.argv[1]))
print(len(reader.list_reports()), reader.damaged, [row.request_id for row in reader.get("good")])
with Outbox(Path(sys.argv[1])) as box:
    print(sum(map(len, box.batches(200))), box.damaged)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_values_that_would_take_all_memory_are_not_read(store: Path) -> None:
    spoil(store, "series", b"\x01" + zlib.compress(b"\0" * (128 * 2**20), 1))
    query(store, "UPDATE reports SET summary = printf('%.*c', 64000000, 'x') WHERE request_id = 'last'")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(store)], capture_output=True, text=True, check=False, timeout=60
    )
    *found, megabytes = done.stdout.splitlines()
    assert found == ["2 1 ['good']", "1 2"], done.stderr
    assert int(megabytes) < 40


@pytest.mark.parametrize("tokens", [0, 1, series.MAX_TOKENS])
def test_a_series_is_unpacked_up_to_its_longest_length(tokens: int) -> None:
    raw = b"\0" * (16 * tokens)
    assert len(series.unpack(b"\x01" + zlib.compress(raw))) == tokens
    for data in (zlib.compress(raw)[:-1], zlib.compress(raw + b"\0"), zlib.compress(b"\0" * (16 * 32_768 + 16)), b""):
        with pytest.raises(ValueError, match="damaged series"):
            series.unpack(b"\x01" + data)


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE VIEW reports AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i AS id FROM n",
        "CREATE TABLE theirs (x)",
        "CREATE VIRTUAL TABLE reports USING fts5(request_id)",
    ],
)
def test_a_file_made_to_hang_or_mislead_is_refused(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "evil.db"
    with opened(path) as connection:
        connection.execute(schema)
        connection.execute("PRAGMA user_version = 4")
    start = time.monotonic()
    for read in (StoreReader(path).list_reports, StoreReader(path).learned, lambda: Outbox(path)):
        with pytest.raises(StoreError, match="no table"):
            read()
    assert time.monotonic() - start < 5


def test_a_read_that_takes_too_long_is_one_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "READ_S", 0.2)
    monkeypatch.setattr(files.Limit.__init__, "__defaults__", (0.2,))
    with pytest.raises(StoreError, match="it takes more than"), StoreReader(store)._connection() as (connection, _):
        connection.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_path_that_is_not_a_file_is_one_line_and_never_a_wait(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "c.db"
    make(path)
    for read in (StoreReader(path).count, lambda: Outbox(path)):
        with pytest.raises(StoreError, match="not a file"):
            read()
    with pytest.raises(StoreError, match="a device, not a file"):
        StoreReader(Path("/dev/null")).count()


def test_a_send_that_cannot_be_noted_is_one_line(store: Path) -> None:
    with Outbox(store) as box, opened(store) as holder:
        box._connection.execute("PRAGMA busy_timeout = 50")
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="the next run sends them again"):
            box.sent([ids(0).span_id])


def test_a_batch_of_long_series_is_a_small_one(store: Path) -> None:
    data = b"\x01" + zlib.compress(b"\0" * (16 * 32_768))
    query(store, "UPDATE reports SET series = ?", data)
    with opened(store) as connection:
        for number in range(3, 10):
            copied = "request_id, created_at_utc, model, finish_reason, prompt_tokens, output_tokens, risk_level, "
            copied += "risk_basis, trace_id, flags, summary, series, start_ns, end_ns, export"
            connection.execute(
                f"INSERT INTO reports ({copied}, span_id) SELECT {copied}, ? FROM reports WHERE id = 1",  # noqa: S608 - text of the test
                (ids(number).span_id,),
            )
    with Outbox(store) as box:
        assert [len(batch) for batch in box.batches(200)] == [4, 4, 2]


def test_texts_of_others_are_cut_where_they_are_kept_and_found_by_what_was_sent(tmp_path: Path, report: Make) -> None:
    long = "ä" * 5000
    path, counters = tmp_path / "c.db", Counters()
    writer = StoreWriter(path, 36500, 1024, counters)
    writer.put(record_of(report(request_id=f"chatcmpl-{long}", model=long), ids(0)))
    writer.close(10)
    (row,) = StoreReader(path).get(long)
    assert StoreReader(path).get(f"chatcmpl-{long}")[0].span_id == row.span_id
    for text in (row.request_id, row.model, row.summary["gen_ai.response.id"], row.summary["gen_ai.request.model"]):
        assert len(text.encode()) <= 256
    assert counters.get("corevital.telemetry.dropped") == 0


def test_a_waiting_row_counts_the_memory_it_takes(report: Make) -> None:
    small = Row(record_of(report(series=None), ids(0)))
    tags = tuple("t" * 5000 for _ in range(1000))
    attributes = {"corevital.tags": tags, "x": "y" * 10**6}
    wide = record_of(report(series=None, request_id="r" * 10**6), ids(1))
    large = Row(dataclasses.replace(wide, attributes={**wide.attributes, **attributes}))
    assert small.size < large.size < 64 * 1024
    assert sys.getsizeof(large.request_id) < 400
    assert attributes["corevital.tags"] is tags, "the caller's are not changed"
    assert len(large.encode(None)[13]) < 64 * 300
    assert Row(record_of(report(tokens=2000), ids(2))).size > 16 * 2000
