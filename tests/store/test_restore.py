"""A backup is verified before it replaces a store; the former store is kept, and one in use is left alone."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import record_of
from corevital_otel.store.files import StoreError
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.restore import restore
from corevital_otel.store.writer import StoreWriter

from .conftest import ids, opened, query

Make = Callable[..., RequestReport]
SERVER = """
import sys
from pathlib import Path
from corevital_otel.counters import Counters
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.writer import StoreWriter
writer = StoreWriter(Path(sys.argv[1]), 36500, 1024, Counters())
while not Path(sys.argv[1] + "-wal").exists():
    pass
print("ready", flush=True)
sys.stdin.read()
writer.close(5)
"""


def write(path: Path, report: Make, *names: str) -> None:
    writer = StoreWriter(path, 36500, 1024, Counters())
    for number, name in enumerate(names):
        writer.put(record_of(report(tokens=200, request_id=name), ids(number)))
    writer.close(10)


@pytest.fixture
def backup(tmp_path: Path, report: Make) -> Path:
    """A backup with 40 requests, as `corevital db backup` makes it: one file."""
    path = tmp_path / "backup.db"
    write(path, report, *(f"old-{number}" for number in range(40)))
    query(path, "PRAGMA journal_mode = DELETE")
    return path


@pytest.fixture
def store(tmp_path: Path, report: Make) -> Path:
    path = tmp_path / "store" / "corevital.db"
    write(path, report, "new-1", "new-2")
    return path


def names(path: Path) -> set[str]:
    return {row.request_id for row in StoreReader(path).list_reports(limit=1000)}


def test_the_backup_takes_the_place_and_the_former_store_is_kept(backup: Path, store: Path, report: Make) -> None:
    held = backup.read_bytes()
    with opened(store) as killed:  # as a killed server leaves it: a row is in the log only
        killed.execute("PRAGMA wal_autocheckpoint = 0")
        killed.execute("UPDATE reports SET request_id = 'in-the-log' WHERE request_id = 'new-2'")
        copies = {ending: Path(f"{store}{ending}").read_bytes() for ending in ("", "-wal")}
    for ending, data in copies.items():
        Path(f"{store}{ending}").write_bytes(data)
    done = restore(backup, store)
    assert (done.requests, done.version, done.damaged) == (40, 4, 0)
    assert names(store) == {f"old-{number}" for number in range(40)}
    assert names(done.former) == {"new-1", "in-the-log"}
    assert sorted(path.name for path in store.parent.glob("*") if path.suffix != "-shm") == sorted(
        (store.name, done.former.name)
    )
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert backup.read_bytes() == held
    write(store, report, "later")
    assert len(names(store)) == 40, "a server continues with it: this span was in the backup"


def test_a_store_can_be_restored_where_there_is_none(backup: Path, tmp_path: Path) -> None:
    done = restore(backup, tmp_path / "runs" / "corevital.db")
    assert done.former is None
    assert len(names(tmp_path / "runs" / "corevital.db")) == 40


def truncated(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def overwritten(table: bool) -> Callable[[bytes], bytes]:
    """The headers of pages that are not the first: of a table's leaves, or of an index."""
    kind = 13 if table else 10

    def change(data: bytes) -> bytes:
        pages = [page for page in range(4096, len(data), 4096) if data[page] == kind]
        assert pages
        return data[: pages[0]] + bytes(8) + data[pages[0] + 8 :]

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated(0.99), "cannot be restored ("),
        (truncated(0.5), "cannot be restored ("),
        (truncated(0.001), "cannot be restored ("),
        (overwritten(True), "cannot be restored ("),
        (overwritten(False), "cannot be restored ("),
        (lambda data: b"", "is empty: use another backup"),
        (lambda data: b"request_id,model\n" * 100, "cannot be restored (file is not a database)"),
    ],
    ids=["a page is missing", "half", "no page", "a table's page", "an index's page", "nothing", "no database"],
)
def test_a_damaged_backup_is_one_line_and_the_store_is_unchanged(
    backup: Path, store: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    backup.write_bytes(damage(backup.read_bytes()))
    held = store.read_bytes()
    with pytest.raises(StoreError) as raised:
        restore(backup, store)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert store.read_bytes() == held
    assert [path.name for path in store.parent.iterdir() if not path.name.endswith(("-wal", "-shm"))] == [store.name]


def test_a_backup_of_an_older_schema_is_migrated_and_a_newer_one_refused(backup: Path, store: Path) -> None:
    with opened(backup) as connection:
        connection.executescript(
            "DROP TABLE resources; DROP TABLE baseline; ALTER TABLE reports DROP COLUMN resource_id; "
            "ALTER TABLE reports DROP COLUMN content; "
            "PRAGMA user_version = 2"
        )
    assert restore(backup, store).version == 2
    assert len(names(store)) == 40
    query(backup, "PRAGMA user_version = 9")
    with pytest.raises(StoreError, match=r"schema 9 is newer than ours \(4\): upgrade corevital or use another file$"):
        restore(backup, store)
    assert len(names(store)) == 40


def test_damaged_rows_of_a_backup_are_counted(backup: Path, store: Path) -> None:
    query(backup, "UPDATE reports SET series = substr(series, 1, 9) WHERE request_id = 'old-3'")
    query(backup, "UPDATE reports SET summary = '{' WHERE request_id = 'old-4'")
    done = restore(backup, store)
    assert (done.requests, done.damaged) == (38, 2)
    assert "row 4, series: damaged series" in done.damage


def test_a_store_in_use_is_refused_until_its_server_stops(backup: Path, store: Path) -> None:
    command = [sys.executable, "-c", SERVER, str(store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n"
        expected = f"is in use by process {server.pid}: stop the server, then restore; nothing has changed"
        with pytest.raises(StoreError, match=expected):
            restore(backup, store)
        assert names(store) == {"new-1", "new-2"}
        server.stdin.close()
        assert server.wait(20) == 0
    assert restore(backup, store).requests == 40


def test_a_damaged_store_is_replaced_and_kept(backup: Path, store: Path) -> None:
    store.write_bytes(b"\xff" * 9000)
    Path(f"{store}-wal").write_bytes(b"\xee" * 500)
    done = restore(backup, store)
    assert len(names(store)) == 40
    assert done.former.read_bytes() == b"\xff" * 9000
    assert Path(f"{done.former}-wal").read_bytes() == b"\xee" * 500
    assert not Path(f"{store}-wal").exists() or Path(f"{store}-wal").read_bytes() != b"\xee" * 500


def test_another_programs_file_is_left_alone(backup: Path, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE places (a)")
    connection.close()
    held = other.read_bytes()
    with pytest.raises(StoreError, match="holds tables of another program: name the store with --db"):
        restore(backup, other)
    with pytest.raises(StoreError, match="it holds tables of another program: use another file"):
        restore(other, store)
    with pytest.raises(StoreError, match="is the store itself: name a backup"):
        restore(store, store)
    assert other.read_bytes() == held
    assert names(store) == {"new-1", "new-2"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_a_folder_that_cannot_be_written_changes_nothing(backup: Path, store: Path) -> None:
    store.parent.chmod(0o500)
    try:
        with pytest.raises(OSError, match="Permission denied"):
            restore(backup, store)
    finally:
        store.parent.chmod(0o700)
    assert names(store) == {"new-1", "new-2"}
