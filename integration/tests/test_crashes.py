"""``kill -9`` during load: no committed row is lost, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import httpx
import pytest
from integration.harness.vllm_server import MODEL_NAME, Vllm, vllm
from tests.harness.collector import collector

pytestmark = pytest.mark.engine


def load(url: str, stop: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=10) as http:
        while not stop.is_set():
            try:
                http.post(
                    "/v1/completions", json={"model": MODEL_NAME, "prompt": "Count from 1 to 30.\n", "max_tokens": 20}
                )
            except httpx.HTTPError:
                return


def committed(database: Path) -> set[str]:
    if not database.exists():
        return set()
    with sqlite3.connect(database) as connection:
        made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'reports'").fetchone()  # after the file
        rows = {row[0] for row in connection.execute("SELECT span_id FROM reports")} if made else set()
    connection.close()
    return rows


def victims(server: Vllm, which: str) -> list[int]:
    if which == "api server":
        return [server.process.pid]
    return [pid for pid, command in server.members().items() if "EngineCore" in command]


@pytest.mark.parametrize("which", ["api server", "engine"])
def test_a_killed_process_loses_no_committed_row_and_leaves_nothing(which: str, tmp_path: Path) -> None:
    database = tmp_path / "runs/corevital.db"
    with vllm(tmp_path, env={"COREVITAL_CAPTURE": "full"}) as server:
        stop = threading.Event()
        clients = [threading.Thread(target=load, args=(server.url, stop)) for _ in range(4)]
        for client in clients:
            client.start()
        deadline = time.monotonic() + 60
        while len(committed(database)) < 20 and time.monotonic() < deadline:
            time.sleep(0.2)
        before = committed(database)
        pids = victims(server, which)
        assert pids, server.members()
        engine = {command for pid, command in server.members().items() if pid not in pids}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        stop.set()
        for client in clients:
            client.join()
        if which == "engine":
            assert server.wait_gone(120) == {}
        else:  # vLLM's own engine outlives an API server that was killed, with and without us
            assert set(server.wait_gone(5).values()) <= engine
    assert len(before) >= 20
    assert before <= committed(database)
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert {path.name for path in database.parent.iterdir()} <= {
        database.name,
        f"{database.name}-wal",
        f"{database.name}-shm",
    }
    assert "@corevital-" not in Path("/proc/net/unix").read_text()


def test_a_restart_continues_in_the_same_file_and_exports_by_http_and_grpc(tmp_path: Path) -> None:
    database = tmp_path / "runs/corevital.db"
    with collector(tmp_path) as rotel:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": rotel.http, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        for round_ in (1, 2):
            with vllm(tmp_path, env=env) as server:
                for _ in range(3):
                    httpx.post(
                        f"{server.url}/v1/completions",
                        json={"model": MODEL_NAME, "prompt": "What is 2 + 3?\n", "max_tokens": 5},
                        timeout=60,
                    ).raise_for_status()
            assert len(committed(database)) == 3 * round_, "what was pending at the stop is in the file"
        spans = rotel.sink.wait_for(6)
    assert {span.span_id for span in spans} == committed(database)
