"""The text of outputs in the store: written and read as it was, bounded, gone with its row, and shown nowhere else."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital.frames.lifecycle import Segment
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import record_of
from corevital_otel.store import content, tables
from corevital_otel.store.content import MAX_TOKENS, PIECE_BYTES, Content
from corevital_otel.store.files import StoreError
from corevital_otel.store.lookup import document
from corevital_otel.store.reader import StoredReport, StoreReader
from corevital_otel.store.rows import Row
from corevital_otel.store.scan import Scan
from corevital_otel.store.upkeep import prune
from corevital_otel.store.writer import StoreWriter

from .conftest import ids, opened, query

SECRET = "open sesame"
TEXT = Content(
    (SECRET, "", " é", "<script>\x00\n"), (((SECRET, 0.75), ("b", 0.25)), ()), 9, (Segment("reasoning", 0, 2),)
)
ALL = Content(tuple("x" for _ in range(MAX_TOKENS)), (), MAX_TOKENS)


@pytest.fixture
def store(tmp_path: Path, report: Callable[..., RequestReport]) -> Path:
    path = tmp_path / "corevital.db"
    writer = StoreWriter(path, 36500, 1024, Counters())
    writer.put(record_of(report(request_id="r0"), ids(0)), TEXT)
    writer.put(record_of(report(request_id="r1"), ids(1)))
    writer.close(10)
    return path


def read(path: Path, number: int) -> StoredReport:
    found = StoreReader(path).get_span(ids(number).span_id)
    assert found is not None
    return found


def test_text_is_read_as_it_was_written(store: Path) -> None:
    assert read(store, 0).content == TEXT
    assert read(store, 1).content is None


def test_only_who_asks_for_one_sequence_gets_its_text(store: Path) -> None:
    reader = StoreReader(store)
    for found in (*reader.list_reports(), *reader.get("r0"), *reader.get_whole("r0")):
        assert found.content is None
    whole = read(store, 0)
    assert "content" not in whole.as_json()
    assert SECRET not in document([whole])
    for kind in ("csv", "jsonl"):
        file = io.BytesIO()
        assert tables.write(Scan(store), file, kind, series=True) == 2
        assert SECRET.encode() not in file.getvalue()


@pytest.mark.parametrize("long", ["é" * PIECE_BYTES, "\ud800" * 3, "🙂" * PIECE_BYTES])
def test_it_is_bounded(long: str) -> None:
    many = Content((long,) * (MAX_TOKENS + 1), (((long, 1.5),) * 20,) * (MAX_TOKENS + 1), MAX_TOKENS + 1)
    found = content.unpack(content.pack(many))
    assert (len(found.tokens), found.total) == (MAX_TOKENS, MAX_TOKENS + 1)
    assert all(len(piece.encode()) <= PIECE_BYTES for piece in found.tokens)
    assert all(share <= 1 for place in found.alternatives for _, share in place)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x02" + content.pack(TEXT)[1:], "content of format 02: this version reads format 01"),
        (b"", "content of format : this version reads format 01"),
        (content.pack(TEXT)[:-3], "damaged content: too long, or its end is missing"),
        (b"\x01no zlib", "damaged content: Error"),
        (b"\x01" + zlib.compress(b"[]"), "damaged content: model_type"),
        (b"\x01" + zlib.compress(b"0" * (9 * 2**20)), "damaged content: too long, or its end is missing"),
        (b"\x01" + zlib.compress(json.dumps({"tokens": [1]}).encode()), "damaged content: string_type"),
        (b"\x01" + zlib.compress(json.dumps({"tokens": ["x" * 300]}).encode()), "damaged content: string_too_long"),
        (
            b"\x01" + zlib.compress(json.dumps({"tokens": [], "alternatives": [[["x", 2.0]]]}).encode()),
            "damaged content: less_than_equal",
        ),
    ],
)
def test_damaged_text_is_one_line(store: Path, data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match="content") as raised:
        content.unpack(data)
    assert str(raised.value).startswith(why)
    query(store, "UPDATE reports SET content = ? WHERE request_id = 'r0'", data)
    with pytest.raises(StoreError) as damaged:
        read(store, 0)
    assert "\n" not in str(damaged.value)
    assert StoreReader(store).get("r0")  # its other columns can be read


def test_text_that_waits_counts_as_memory(report: Callable[..., RequestReport]) -> None:
    plain, texted = (Row(record_of(report(), ids(0)), text) for text in (None, ALL))
    assert texted.size - plain.size >= MAX_TOKENS * 64


def test_a_pruned_row_takes_its_text_along(tmp_path: Path, report: Callable[..., RequestReport]) -> None:
    path = tmp_path / "corevital.db"
    writer = StoreWriter(path, 36500, 1024, Counters())
    writer.put(record_of(report(request_id="old", end_ns=10**18), ids(0)), TEXT)
    writer.put(record_of(report(request_id="new"), ids(1)), TEXT)
    writer.close(10)
    assert query(path, "SELECT count(*) FROM reports WHERE content IS NOT NULL") == [(2,)]
    with opened(path) as connection:
        assert prune(connection, path, 1.1e9, None) == 1
    assert query(path, "SELECT request_id FROM reports WHERE content IS NOT NULL") == [("new",)]
