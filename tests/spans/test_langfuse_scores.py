"""Scores for Langfuse: their form, their failures, and keys that nothing shows. The server is a stand-in."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from corevital_otel.counters import Counters
from corevital_otel.errors import SettingsError
from corevital_otel.otlp.destination import Destination
from corevital_otel.report import RequestReport, Risk
from corevital_otel.spans import langfuse_scores
from corevital_otel.spans.langfuse_scores import Account, LangfuseScores, account
from corevital_otel.spans.record import SpanIds, record_of

Make = Callable[..., RequestReport]
KEYS = {"LANGFUSE_PUBLIC_KEY": "pk-lf-1", "LANGFUSE_SECRET_KEY": "sk-lf-secret"}
DROPPED, EXPORTED = "corevital.telemetry.dropped", "corevital.telemetry.exported"


class StandIn:
    """A stand-in for Langfuse: it notes requests and answers with ``status`` and the errors of ``rejected``."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.statuses: list[int] = []
        self.rejected = 0
        self.wait_s = 0.0
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.requests.append((self.path, self.headers["Authorization"], body))
                time.sleep(stand_in.wait_s)
                status = stand_in.statuses.pop(0) if stand_in.statuses else 207
                errors = [{"id": "x", "status": 400} for _ in range(stand_in.rejected)]
                answer = json.dumps({"successes": [], "errors": errors}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def langfuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(langfuse_scores, "_GATHER_S", 0.02)
    monkeypatch.setattr(langfuse_scores, "_PAUSES_S", (0.02, 0.02))
    found = StandIn()
    yield found
    found.server.shutdown()
    found.server.server_close()


def ids(number: int, exported: bool = True) -> SpanIds:
    return SpanIds(f"{number + 1:032x}", f"{number + 1:016x}", None, exported)


def settled(counters: Counters, count: int) -> None:
    deadline = time.monotonic() + 20
    while counters.get(DROPPED, what="score") + counters.get(EXPORTED, signal="scores") < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_score_is_a_number_on_the_span(langfuse: StandIn, report: Make) -> None:
    counters = Counters()
    scores = LangfuseScores(counters, Account(langfuse.url, "pk", "sk"))
    scores.send(record_of(report(risk=Risk(score=0.75, level="high", factors=("peak",))), ids(0)))
    scores.send(record_of(report(risk=Risk(score=None, level="unknown")), ids(1)))
    scores.send(record_of(report(), ids(2, exported=False)))
    settled(counters, 1)
    scores.close(5)
    ((path, authorization, body),) = langfuse.requests
    assert path == "/api/public/ingestion"
    assert authorization == f"Basic {base64.b64encode(b'pk:sk').decode()}"
    assert body == {
        "batch": [
            {
                "id": f"corevital-{1:016x}",
                "type": "score-create",
                "timestamp": "2026-09-21T14:13:22.000+00:00",
                "body": {
                    "id": f"corevital-{1:016x}",
                    "traceId": f"{1:032x}",
                    "observationId": f"{1:016x}",
                    "name": "corevital.risk_score",
                    "value": 0.75,
                    "dataType": "NUMERIC",
                    "comment": "0 is good, 1 is bad; basis prior: peak",
                },
            }
        ]
    }
    assert counters.get(EXPORTED, signal="scores") == 1
    assert counters.get(DROPPED) == 0


@pytest.mark.parametrize(
    ("statuses", "rejected", "asked", "lost"),
    [
        ([503, 429], 0, 3, {}),
        ([503, 503, 503], 0, 3, {"export_failed": 1}),
        ([401], 0, 1, {"export_failed": 1}),
        ([302], 0, 1, {"export_failed": 1}),
        ([], 1, 1, {"rejected": 1}),
    ],
)
def test_failures_are_tried_again_within_bounds_and_counted(
    langfuse: StandIn,
    report: Make,
    logged: Callable[[], list[logging.LogRecord]],
    statuses: list[int],
    rejected: int,
    asked: int,
    lost: dict[str, int],
) -> None:
    langfuse.statuses, langfuse.rejected = statuses, rejected
    counters = Counters()
    scores = LangfuseScores(counters, Account(langfuse.url, "pk-1", "sk-secret"))
    scores.send(record_of(report(), ids(0)))
    settled(counters, 1)
    scores.close(5)
    assert len(langfuse.requests) == asked
    for why in ("export_failed", "rejected", "shutdown"):
        assert counters.get(DROPPED, what="score", why=why) == lost.get(why, 0), why
    lines = [record.getMessage() for record in logged()]
    assert len(lines) == ("export_failed" in lost)
    assert "sk-secret" not in str(lines)
    assert "Basic" not in str(lines)


def test_a_server_that_is_not_there_or_hangs_holds_nothing_up(
    langfuse: StandIn, report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(langfuse_scores, "_WAITING", 5)
    langfuse.wait_s = 3.0
    counters = Counters()
    scores = LangfuseScores(counters, Account(langfuse.url, "pk", "sk"))
    begun = time.monotonic()
    scores.send(record_of(report(), ids(0)))
    while not langfuse.requests:
        time.sleep(0.01)
    for number in range(1, 11):
        scores.send(record_of(report(), ids(number)))
    assert counters.get(DROPPED, what="score", why="queue_full") == 5
    scores.close(0.2)
    assert time.monotonic() - begun < 2.5
    assert counters.get(DROPPED, what="score", why="shutdown") == 6
    scores.send(record_of(report(), ids(11)))
    assert counters.get(DROPPED, what="score", why="shutdown") == 7


@pytest.mark.parametrize(
    ("env", "endpoint", "host"),
    [
        ({}, None, None),
        ({**KEYS, "LANGFUSE_HOST": "https://lf.example/"}, None, "https://lf.example"),
        ({**KEYS, "LANGFUSE_BASE_URL": "https://lf.example"}, None, "https://lf.example"),
        (KEYS, "https://eu.example/lf/api/public/otel/v1/traces", "https://eu.example/lf"),
    ],
)
def test_the_account_is_that_of_the_variables(env: dict[str, str], endpoint: str | None, host: str | None) -> None:
    where = None if endpoint is None else Destination(endpoint, "http/protobuf", endpoint)
    found = account(env, where)
    assert (None if found is None else found.host) == host
    assert "sk-lf" not in repr(found)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"LANGFUSE_PUBLIC_KEY": "pk-lf-1"}, "LANGFUSE_SECRET_KEY is missing"),
        ({"LANGFUSE_SECRET_KEY": "sk-lf-secret"}, "LANGFUSE_PUBLIC_KEY is missing"),
        ({**KEYS, "LANGFUSE_SECRET_KEY": "sk-lf-secret\nx"}, "LANGFUSE_SECRET_KEY is missing or not printable"),
        (KEYS, "LANGFUSE_HOST is missing"),
        ({**KEYS, "LANGFUSE_HOST": "lf.example"}, "LANGFUSE_HOST is missing or not a URL"),
        ({**KEYS, "LANGFUSE_HOST": "https://u:sk-lf-secret@lf.example"}, "LANGFUSE_HOST is missing or not a URL"),
        ({**KEYS, "LANGFUSE_HOST": "http://["}, "LANGFUSE_HOST is missing or not a URL"),
    ],
)
def test_a_wrong_account_is_one_line_without_a_key(env: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        account(env, None)
    assert message in str(error.value)
    assert "sk-lf" not in str(error.value)
    assert "\n" not in str(error.value)
