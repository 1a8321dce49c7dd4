"""``COREVITAL_DB_RESEND=1`` on real vLLM: a server that is killed while its collector is away loses no span."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from integration.harness.vllm_server import MODEL_NAME, Vllm, vllm
from tests.harness.collector import collector
from tests.harness.processes import within

from corevital_otel.cli.scrape import scrape

pytestmark = pytest.mark.engine


def ask(server: Vllm, count: int) -> None:
    for number in range(count):
        body = {"model": MODEL_NAME, "prompt": "Tell me a story.", "max_tokens": 8, "seed": number}
        assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200


def fates(store: Path) -> dict[str, str]:
    with closing(sqlite3.connect(store, timeout=20)) as connection:
        return dict(connection.execute("SELECT span_id, export FROM reports"))


def test_the_next_start_sends_the_spans_of_a_killed_server(tmp_path: Path) -> None:
    store = tmp_path / "corevital.db"
    with collector(tmp_path) as rotel:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": rotel.grpc,
            "COREVITAL_DB": str(store),
            "COREVITAL_DB_RESEND": "1",
            "COREVITAL_HTTP": "none",
        }
        rotel.stop()
        with vllm(tmp_path, env=env) as server:
            ask(server, 20)
            within(20, lambda: len(fates(store)) == 20)
            assert scrape(server.url).total("corevital_telemetry_dropped_total", what="span") == 0
            for pid in server.members():
                os.kill(pid, signal.SIGKILL)
        assert set(fates(store).values()) == {"queued"}
        rotel.start()
        with vllm(tmp_path, env={**env, "COREVITAL_PROCESS": "process"}) as server:
            within(60, lambda: set(fates(store).values()) == {"sent"})
            ask(server, 5)
            within(60, lambda: len(rotel.sink.spans) >= 25)
            time.sleep(2.0)
        assert {span.span_id for span in rotel.sink.spans} == fates(store).keys()
        assert [span.span_id for span in rotel.sink.spans if rotel.sink.times[span.span_id] > 1] == []
        assert len({span.resource["service.instance.id"] for span in rotel.sink.spans}) == 2, "each its own server's"
