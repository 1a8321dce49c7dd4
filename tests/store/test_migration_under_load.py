"""A store of 0.1 is migrated beside servers of this version that have requests already: no row is lost."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.harness.old_store import store_of_0_1
from tests.harness.processes import environment, within

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import record_of
from corevital_otel.store import schema
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.writer import StoreWriter

from .conftest import ids, query, wait_for

Make = Callable[..., RequestReport]


def test_reports_wait_for_the_migration_of_an_older_store(
    tmp_path: Path, report: Make, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr("corevital_otel.store.writer._RETRY_S", 0.05)
    path, counters = tmp_path / "c.db", Counters()
    store_of_0_1(path, 3)
    writer = StoreWriter(path, 36500, 1024, counters)
    for number in range(700):
        writer.put(record_of(report(request_id=f"new-{number}"), ids(100 + number)))
    wait_for(lambda: writer.failing)
    assert query(path, "SELECT count(*), (SELECT user_version FROM pragma_user_version) FROM reports") == [(3, 3)]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert schema.migrate(connection) == (3, schema.VERSION)
    wait_for(lambda: writer.waiting == 0)
    writer.close(10)
    assert len(StoreReader(path).list_reports(limit=1000)) == 703
    assert counters.get("corevital.telemetry.dropped") == 0
    waits, again = warnings()
    assert waits == (
        f"the store {path} cannot be written (its schema 3 is older than ours ({schema.VERSION})): run `corevital db "
        "migrate`; requests are unaffected, up to 20000 reports wait"
    )
    assert again == f"the store {path} can be written again"


@pytest.mark.slow
def test_servers_start_on_a_store_of_0_1_and_write_while_it_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    store_of_0_1(path, 3000)
    env = environment({"COREVITAL_DB": str(path), "PYTHONPATH": os.pathsep.join(sys.path)})
    servers = []
    for prefix in ("a-", "b-"):
        with (tmp_path / f"{prefix}finished").open("wb") as finished:
            command = [sys.executable, "-m", "tests.harness.hub_load", "--prefix", prefix, "--rate", "150"]
            servers.append(subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=finished))

    def done() -> list[str]:
        return [name for prefix in ("a-", "b-") for name in (tmp_path / f"{prefix}finished").read_text().split()]

    try:
        within(60, lambda: len(done()) > 300)
        migrate = [sys.executable, "-m", "corevital_otel.cli", "db", "migrate", "--db", str(path)]
        due = subprocess.run([*migrate, "--check"], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert due.returncode == 1
        assert "its schema 3 is older than ours" in due.stderr
        migrated = subprocess.run(migrate, env=env, capture_output=True, text=True, timeout=60, check=True)
        assert "migrated from schema 3" in migrated.stdout
        within(30, lambda: query(path, "SELECT count(*) FROM reports")[0][0] > 3300)  # type: ignore[operator]
    finally:
        for server in servers:
            assert server.stdin is not None
            server.stdin.close()
    assert [server.wait(30) for server in servers] == [0, 0]
    assert subprocess.run([*migrate, "--check"], env=env, check=False, timeout=60).returncode == 0
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    found = [str(name) for (name,) in query(path, "SELECT request_id FROM reports")]
    assert sorted(found) == sorted([*(f"old-{number}" for number in range(3000)), *done()]), "each once"
