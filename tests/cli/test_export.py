"""``corevital db export``, ``restore``, ``migrate --check`` and ``query``: whole files or none, and bounded memory."""

from __future__ import annotations

import csv
import json
import resource
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from pyarrow import parquet

from corevital_otel.cli.app import app
from corevital_otel.cli.errors import CommandError
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]
Call = Callable[..., tuple[str, str]]
COMMAND = (sys.executable, "-m", "corevital_otel.cli")
FORMATS = ("parquet", "csv", "jsonl")
COPIES = (
    "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO reports (request_id, "
    "created_at_utc, model, finish_reason, prompt_tokens, output_tokens, risk_level, risk_basis, trace_id, span_id, "
    "flags, summary) SELECT 'r' || i, created_at_utc, model, finish_reason, prompt_tokens, output_tokens, risk_level, "
    "risk_basis, trace_id, printf('%016x', i), flags, summary FROM n, reports WHERE id = 1"
)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls a command in this process: a new one needs a second. Returns its output, and its error's text."""

    def run(*arguments: object) -> tuple[str, str]:
        failed = ""
        try:
            app([str(argument) for argument in arguments], standalone_mode=False)
        except (CommandError, typer.BadParameter) as error:
            failed = str(error)
        printed = capsys.readouterr()
        return printed.out, failed or printed.err

    return run


def make(path: Path, report: Make, rows: int) -> Path:
    writer = StoreWriter(path, 36500, 1024, Counters())
    writer.put(record_of(report(request_id="r1", end_ns=time.time_ns()), SpanIds("1" * 32, "f" * 16)))
    writer.close(10)
    with sqlite3.connect(path) as connection:
        connection.execute(COPIES, (rows,))
    connection.close()
    return path


@pytest.fixture
def store(tmp_path: Path, report: Make) -> Path:
    return make(tmp_path / "corevital.db", report, 500)


def count(path: Path) -> int:
    if path.suffix == ".parquet":
        return parquet.read_metadata(path).num_rows
    with path.open(newline="") as file:
        return sum(1 for _ in (csv.DictReader(file) if path.suffix == ".csv" else file))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_table_is_whole_and_for_its_user_alone(call: Call, store: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / f"requests.{kind}"
    done, error = call("db", "export", "--format", kind, "--out", target, "--series", "--db", store)
    assert error == ""
    assert done.startswith(f"{target}: 500 requests from {store} (")
    assert count(target) == 500
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    again = call("db", "export", "--format", kind, "--out", target, "--db", store)
    assert again == ("", f"{target} exists: move it away, or name another file")
    assert count(target) == 500


@pytest.mark.parametrize("kind", FORMATS)
def test_where_the_disk_is_full_no_half_file_stays(store: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "table"
    with sqlite3.connect(store) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # else reading it makes a file of 32 KB
    connection.close()
    done = subprocess.run(
        [*COMMAND, "db", "export", "--format", kind, "--out", target, "--db", store],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"corevital: {target} cannot be written (File too large): free space, or name another file\n"
    assert not list(tmp_path.glob("table*"))


MEASURED = """
import re, sys
from pathlib import Path
from corevital_otel.cli.app import app
app(sys.argv[1:], standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak_mb(path: Path, target: Path, kind: str) -> float:
    """The highest memory of an export's process. ``ru_maxrss`` counts the process that forked it, too."""
    arguments = ("db", "export", "--format", kind, "--out", str(target), "--db", str(path))
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1]) / 2**10


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("jsonl", 8), ("csv", 8), ("parquet", 32)])
def test_memory_does_not_grow_with_the_store(tmp_path: Path, report: Make, kind: str, most: float) -> None:
    """Parquet holds a row group of 16 MB, and what its encoder needs for it."""
    few = peak_mb(make(tmp_path / "few.db", report, 500), tmp_path / "few", kind)
    many = peak_mb(make(tmp_path / "many.db", report, 8000), tmp_path / "many", kind)
    print(f"{kind}: {few:.0f} MB for 500 rows, {many:.0f} MB for 8000")
    assert many - few < most


def test_a_wrong_export_is_one_line_and_leaves_no_file(call: Call, store: Path, tmp_path: Path) -> None:
    newer = make_newer(store, tmp_path / "newer.db")
    out = ("--out", tmp_path / "table.csv")
    for arguments, expected in (
        (("--db", store), "needs a destination: use --format and --out, or use --otlp alone"),
        (("--format", "csv", "--db", store), "needs a table's --format and its --out: give both"),
        ((*out, "--otlp", "--format", "csv"), "needs a destination: use --format and --out, or use --otlp alone"),
        ((*out, "--format", "xls"), "'xls' is not one of 'parquet', 'csv', 'jsonl'"),
        ((*out, "--format", "csv", "--since", "soon"), "--since 'soon' is not a time span"),
        ((*out, "--format", "csv", "--db", tmp_path / "none.db"), "there is no store at"),
        ((*out, "--format", "csv", "--db", newer), "has schema 9, this version reads 4: upgrade corevital"),
        (("--out", tmp_path / "no/t.csv", "--format", "csv", "--db", store), "cannot be written (No such file"),
    ):
        done, error = call("db", "export", *arguments)
        assert done == ""
        assert expected in error
        assert "\n" not in error
    assert not list(tmp_path.glob("table*"))


def make_newer(store: Path, path: Path) -> Path:
    path.write_bytes(store.read_bytes())
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    return path


def test_a_migration_that_is_due_can_be_checked(call: Call, store: Path, tmp_path: Path) -> None:
    assert call("db", "migrate", "--check", "--db", store) == (f"{store}: schema 4, up to date\n", "")
    newer = call("db", "migrate", "--check", "--db", make_newer(store, tmp_path / "newer.db"))
    assert "schema 9 is newer than ours (4): upgrade corevital" in newer[1]
    with sqlite3.connect(store) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    held = store.read_bytes()
    command = [*COMMAND, "db", "migrate", "--check", "--db", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("its schema 2 is older than ours (4): run `corevital db migrate`\n")
    assert store.read_bytes() == held


def test_a_backup_can_be_restored_and_its_damage_is_one_line(call: Call, store: Path, tmp_path: Path) -> None:
    backup, target = tmp_path / "backup.db", tmp_path / "restored.db"
    call("db", "backup", backup, "--db", store)
    first = call("db", "restore", backup, "--db", target)
    assert first == (f"{target}: 500 requests restored from {backup}\n", "")
    assert StoreReader(target).count() == 500
    assert f"; the former store is {target}.replaced-" in call("db", "restore", backup, "--db", target)[0]
    backup.write_bytes(backup.read_bytes()[:50_000])
    done, error = call("db", "restore", backup, "--db", target)
    assert done == ""
    assert error.startswith(f"{backup} cannot be restored (")
    assert error.endswith("the store is unchanged: use an earlier backup")
    assert StoreReader(target).count() == 500


def test_a_result_is_printed_as_table_csv_or_json(call: Call, store: Path) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE reports SET model = '=1' || char(27, 10) || ',x' WHERE request_id = 'r2'")
    connection.close()
    sql = "SELECT request_id, model, risk_score, risk_score, x'01ff' AS b FROM reports WHERE id < 3 ORDER BY id"
    table, _ = call("query", sql, "--db", store)
    assert [line.split() for line in table.splitlines()] == [
        ["request_id", "model", "risk_score", "risk_score:1", "b"],
        ["r1", "tiny", "0.25", "0.25", "2", "bytes"],
        ["r2", "=1\\x1b\\n,x", "2", "bytes"],
    ]
    lines = call("query", sql, "--format", "csv", "--db", store)[0].split("\n")
    assert lines[0] == "request_id,model,risk_score,risk_score:1,b"
    assert lines[1:] == ["r1,tiny,0.25,0.25,01ff", "r2,\"'=1\\x1b", ',x",,,01ff', ""]
    rows = json.loads(call("query", sql, "--format", "json", "--db", store)[0])
    assert rows[1] == {"request_id": "r2", "model": "=1\x1b\n,x", "risk_score": None, "risk_score:1": None, "b": "01ff"}
    assert json.loads(call("query", "SELECT 1 AS a WHERE 0", "--format", "json", "--db", store)[0]) == []
    few = call("query", "SELECT id FROM reports ORDER BY id", "--limit", 2, "--format", "csv", "--db", store)
    assert few == ("id\n1\n2\n", "corevital: only the first 2 rows are shown: raise --limit, or aggregate\n")


def test_a_wrong_query_is_one_line_and_prints_no_part_of_a_result(call: Call, store: Path, tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 100 OR i < 0"
    for sql, options, expected in (
        ("DELETE FROM reports", (), "is refused (a change)"),
        (endless, ("--timeout", "0.3", "--format", "csv"), "takes more than 0.3 s"),
        ("SELECT 1", ("--db", make_newer(store, tmp_path / "newer.db")), "has schema 9, this version reads 4"),
        ("SELECT 1", ("--db", tmp_path / "none.db"), "there is no store at"),
        ("SELECT 1", ("--format", "xml"), "'xml' is not one of 'table', 'csv', 'json'"),
    ):
        done, error = call("query", sql, "--db", store, *options)
        assert done == "", done
        assert expected in error
        assert "\n" not in error
    assert StoreReader(store).count() == 500
