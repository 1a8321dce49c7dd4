"""Stores whose rows and bytes are damaged at random: every reader ends with a result or one line, in bounded memory."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corevital_otel.cli.app import app
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.outbox import Outbox
from corevital_otel.store.reader import StoreError, StoreReader
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]
SECONDS = float(os.environ.get("COREVITAL_FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("COREVITAL_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
"""Named in the failure's output; set the variable to run the same again."""
ROWS = 6
NAMES = [f"r{number}" for number in range(ROWS)]


def make_store(folder: Path, report: Make) -> Path:
    """A store with rows and a log, as a server that was killed leaves it."""
    path = folder / "whole.db"
    writer = StoreWriter(path, 36500, 1024, Counters(), {"service.name": "vllm"})
    for number, name in enumerate(NAMES):
        ids = SpanIds(f"{number + 1:032x}", f"{number + 1:016x}", None, True)
        writer.put(record_of(report(request_id=name, end_ns=time.time_ns() - 2 * 3600 * 10**9 + number * 10**6), ids))
        writer.settle([ids.span_id], False)
        writer.learn("tiny", "0.5", [1.0] * 6)
    deadline = time.monotonic() + 10
    while writer.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    for ending in ("", "-wal", "-shm"):
        shutil.copy(f"{path}{ending}", f"{folder / 'killed.db'}{ending}")
    writer.close(10)
    return path


def nested(random_: random.Random, depth: int = 0) -> Any:
    kind = random_.randrange(9 if depth < 3 else 6)
    if kind >= 6:
        parts = [nested(random_, depth + 1) for _ in range(random_.randrange(4))]
        return parts if kind < 8 else {f"k{i}": part for i, part in enumerate(parts)}
    return (None, True, random_.randrange(-(10**40), 10**40), random_.uniform(-1e300, 1e300), "\x1b[2J\n", -0.0)[kind]


def value(random_: random.Random, old: Any) -> Any:
    """Another value of a column."""
    kind = random_.randrange(8)
    if kind == 0:
        return random_.choice([None, 0, -1, 2**63 - 1, -(2**63), 1e308, float("inf"), "", b"", "\x00", "[" * 50_000])
    if kind == 1:
        return random_.randbytes(random_.randrange(200))
    if kind == 2:
        return json.dumps(nested(random_))
    if kind == 3 and isinstance(old, str) and old.startswith("{"):
        found = json.loads(old)
        found[random_.choice([*found, "corevital.new"])] = nested(random_)
        return json.dumps(found)
    data = bytearray(old if isinstance(old, bytes) else str(old).encode())
    for _ in range(random_.randrange(1, 4)):
        at = random_.randrange(len(data) + 1)
        data[at : at + random_.randrange(2)] = random_.randbytes(random_.randrange(3))
    return bytes(data) if isinstance(old, bytes) or kind == 4 else data.decode("utf-8", "replace")


def read(path: Path) -> list[str]:
    """All readers; the ids that the list has. Anything but a result or a ``StoreError`` is a failure."""
    found: list[str] = []
    lines: list[str] = []
    errors = 0
    reader = StoreReader(path)
    for query in (
        lambda: found.extend(row.request_id for row in reader.list_reports(limit=100)),
        lambda: [row.as_json() for name in ("r1", "r") for row in reader.get(name)],
        lambda: reader.list_reports(flag="truncated", risk_above=0.1, models=["tiny"]),
        lambda: (reader.count(), reader.undelivered(), reader.learned()),
        lambda: unsent(path),
    ):
        try:
            query()
        except StoreError as error:
            lines += str(error).splitlines()
            errors += 1
    assert len(lines) == errors
    return found


def unsent(path: Path) -> None:
    with Outbox(path) as box:
        box.count()
        for batch in box.batches(3):
            for span in batch:
                assert int(span.trace_id, 16)
                assert int(span.span_id, 16)


def commands(path: Path) -> None:
    for call in (["spans"], ["spans", "--json"], ["show", "r1"], ["db", "export", "--otlp", "--dry-run"]):
        done = CliRunner().invoke(app, [*call, "--db", str(path)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            from corevital_otel.cli.errors import CommandError

            assert isinstance(done.exception, CommandError), (call, done.exception)
            assert len(str(done.exception).splitlines()) == 1


@pytest.fixture
def bounded() -> Any:
    """Memory of all tries together."""
    print(f"COREVITAL_FUZZ_SEED={SEED}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


@pytest.mark.usefixtures("bounded")
def test_a_row_with_any_values_hides_no_other(tmp_path: Path, report: Make) -> None:
    whole, path = make_store(tmp_path, report), tmp_path / "c.db"
    random_, end, tries = random.Random(SEED), time.monotonic() + SECONDS, 0
    with sqlite3.connect(whole) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(reports)") if row[1] != "id"]
    connection.close()
    while time.monotonic() < end:
        tries += 1
        shutil.copy(whole, path)
        connection = sqlite3.connect(path)
        for column in random_.sample(columns, random_.randrange(1, 3)):
            old = connection.execute(f"SELECT {column} FROM reports WHERE id = 2").fetchone()[0]  # noqa: S608 - text of the test
            try:
                connection.execute(f"UPDATE reports SET {column} = ? WHERE id = 2", [value(random_, old)])  # noqa: S608 - text of the test
            except (sqlite3.IntegrityError, OverflowError):
                continue
        connection.commit()
        connection.close()
        found = read(path)
        assert set(NAMES) - {"r1"} <= set(found), (SEED, tries)
        if tries % 10 == 0:
            commands(path)
    assert tries > 10, SEED


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("name", ["whole.db", "killed.db"])
def test_a_file_with_any_bytes_is_a_result_or_one_line(tmp_path: Path, report: Make, name: str) -> None:
    make_store(tmp_path, report)
    path = tmp_path / "c.db"
    pieces = {ending: (tmp_path / f"{name}{ending}") for ending in ("", "-wal", "-shm")}
    before = {ending: piece.read_bytes() for ending, piece in pieces.items() if piece.exists()}
    random_, end, tries = random.Random(SEED), time.monotonic() + SECONDS / 2, 0
    while time.monotonic() < end:
        tries += 1
        for ending in ("", "-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
        spoiled = random_.choice(list(before))
        for ending, data in before.items():
            changed = bytearray(data)
            if ending == spoiled and changed:
                near = random_.choice([100, 5000, len(changed)])
                for _ in range(random_.choice([1, 3, 30])):
                    changed[random_.randrange(min(near, len(changed)))] = random_.randrange(256)
                if random_.random() < 0.1:
                    del changed[random_.randrange(len(changed)) :]
            Path(f"{path}{ending}").write_bytes(changed)
        read(path)
        if tries % 10 == 0:
            commands(path)
    assert tries > 5
