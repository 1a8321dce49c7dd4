"""``corevital db prune`` and ``backup`` while a server keeps writing."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.harness.faulty import http_receiver

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.writer import StoreWriter

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Make = Callable[..., RequestReport]
DAY_NS = 24 * 3600 * 10**9


def write(path: Path, report: Make, ages: list[float]) -> None:
    writer = StoreWriter(path, 30, 1024, Counters())
    for days in ages:
        ids = SpanIds(os.urandom(16).hex(), os.urandom(8).hex())
        writer.put(record_of(report(request_id=f"of-{days}", end_ns=time.time_ns() - int(days * DAY_NS)), ids))
    writer.close(10)


@pytest.fixture
def store(tmp_path: Path, report: Make) -> Path:
    path = tmp_path / "corevital.db"
    write(path, report, [0, 1, 5, 9])
    return path


def ids(path: Path) -> list[str]:
    return [row.request_id for row in StoreReader(path).list_reports()]


@pytest.mark.slow
def test_old_requests_are_deleted_by_options_or_settings(cli: Cli, store: Path) -> None:
    done = cli("db", "prune", "--older-than", "7d", "--db", store)
    assert done.stdout.startswith(f"{store}: 1 requests deleted, 3 requests ("), done
    assert ids(store) == ["of-0", "of-1", "of-5"]
    assert "1 requests deleted, 2 requests" in cli("db", "prune", "--db", store, COREVITAL_DB_RETENTION_DAYS="2").stdout
    assert "0 requests deleted, 2 requests" in cli("db", "prune", "--db", store).stdout
    old = {"COREVITAL_DB_RETENTION_DAYS": "0.5"}
    assert "0 requests deleted, 2 requests" in cli("db", "prune", "--max-mb", "100", "--db", store, **old).stdout, (
        "as asked alone"
    )
    assert "2 requests deleted, 0 requests" in cli("db", "prune", "--max-mb", "0", "--db", store).stdout


def test_a_backup_is_complete_while_a_server_writes_and_can_replace_the_store(
    cli: Cli, store: Path, tmp_path: Path, report: Make
) -> None:
    writer = StoreWriter(store, 30, 1024, Counters())
    for number in range(2000):
        made = report(request_id=f"more-{number}", end_ns=time.time_ns())
        writer.put(record_of(made, SpanIds(f"{number:032x}", f"{number:016x}")))
    target = tmp_path / "copy.db"
    done = cli("db", "backup", target, "--db", store)
    writer.close(10)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.glob("copy.db*")) == ["copy.db"], "no log beside it, nothing left over"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    held = StoreReader(target).count()
    assert 4 <= held <= 2004
    assert f"{target}: {held} requests (" in done.stdout
    assert StoreReader(store).count() == 2004, "the server lost nothing"
    write(target, report, [2])
    assert StoreReader(target).count() == held + 1, "a server can continue with it"


@pytest.mark.slow
def test_a_wrong_call_is_one_line_and_changes_nothing(cli: Cli, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database, and long enough not to count as empty" * 20)
    (tmp_path / "empty.db").touch()
    held = store.read_bytes()
    for arguments, expected in (
        (("backup", store, "--db", store), "exists"),
        (("backup", tmp_path / "none/copy.db", "--db", store), "cannot be backed up: unable to open database file"),
        (("backup", tmp_path / "copy.db", "--db", other), "not a database"),
        (("backup", tmp_path / "copy.db", "--db", tmp_path / "none.db"), "there is no store at"),
        (("prune", "--older-than", "soon", "--db", store), "--older-than 'soon' is not a time span"),
        (("prune", "--older-than", "", "--db", store), "--older-than '' is not a time span"),
        (("prune", "--max-mb", "inf", "--db", store), "Invalid value for '--max-mb'"),
        (("prune", "--db", tmp_path / "empty.db"), "is empty: name another with --db"),
        (("backup", tmp_path / "copy.db", "--db", tmp_path / "empty.db"), "is empty: name another with --db"),
        (("prune", "--db", other), "cannot be pruned: file is not a database"),
    ):
        done = cli("db", *map(str, arguments))
        assert done.returncode in (1, 2), arguments
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert expected in done.stderr
    assert store.read_bytes() == held
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corevital.db", "empty.db", "other.db"]


def test_damaged_spans_are_reported_and_the_others_sent(cli: Cli, tmp_path: Path, report: Make) -> None:
    path = tmp_path / "c.db"
    writer = StoreWriter(path, 36500, 1024, Counters())
    for number in range(3):
        ids = SpanIds(f"{number + 1:032x}", f"{number + 1:016x}", None, True)
        writer.put(record_of(report(request_id=f"r{number}", end_ns=time.time_ns() - 2 * 3600 * 10**9), ids))
        writer.settle([ids.span_id], False)
    writer.close(10)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE reports SET trace_id = 'zz' || char(27, 10) WHERE request_id = 'r1'")
    connection.close()
    with http_receiver() as received:
        to = {"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        for sent in (2, 0):
            done = cli("db", "export", "--otlp", "--db", path, **to)
            assert done.returncode == 1
            assert f"{sent} spans sent to" in done.stdout
            (line,) = done.stderr.splitlines()
            assert "1 are damaged (row 2, trace_id: " in line
    assert StoreReader(path).undelivered() == 1


def test_a_store_is_pruned_in_steps_while_a_server_writes_and_its_file_shrinks(
    cli: Cli, tmp_path: Path, report: Make
) -> None:
    path = tmp_path / "c.db"
    write(path, report, [0])
    with sqlite3.connect(path) as connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT INTO reports "
            "(request_id, created_at_utc, model, finish_reason, prompt_tokens, output_tokens, risk_level, risk_basis, "
            "trace_id, span_id, flags, summary) SELECT 'old', '2020-01-01T00:00:00.000Z', 'm', 'stop', 1, 0, 'low', "
            "'prior', '1', 'x' || i, '[]', printf('{\"a\":\"%.1500c\"}', 'x') FROM n"
        )
    connection.close()
    writer = StoreWriter(path, 36500, 1024, Counters())
    writer.put(record_of(report(request_id="served", end_ns=time.time_ns()), SpanIds("e" * 32, "e" * 16)))
    done = cli("db", "prune", "--older-than", "7d", "--db", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{path}: 5000 requests deleted, 2 requests (0." in done.stdout
    writer.close(10)
    assert path.stat().st_size < 2**20
