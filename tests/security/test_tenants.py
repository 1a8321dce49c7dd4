"""What one tenant's ids, tags and text can reach in a server that several share, through a hub with its outputs.

The tenant `alice` has one request. Then `mallory` sends what a client can choose: ids, tags, and an output whose text
the store keeps. Nothing of either is in a metric; log lines, URLs, reports and pages keep them apart.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.harness.processes import within
from tests.harness.seen import Seen
from tests.harness.tokenizer_stand_in import StandIn, install

from corevital import log
from corevital.frames.layout import ROW, SAMPLED, Source
from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.sender import FrameSender
from corevital_otel.addresses import Address
from corevital_otel.http.port import HttpPort
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings
from corevital_otel.ui.application import Application

ALICE, HER_TAG = "chatcmpl-alice", "tenant:alice"
HOSTILE = (
    "mallory'; DROP TABLE reports; --",
    "mallory' OR '1'='1",
    "%mallory%",
    "mallory\ncorevital ERROR: forged",
    '{"request_id": "mallory"}\r\n{"forged": 1}',
    "\x1b]0;mallory\x07\u202e",
    "<script>mallory(1)</script>",
    '"><img src=x onerror=mallory(1)>',
    'mallory"} 1\ncorevital_requests_total{forged="1"',
    "../../mallory/etc/passwd?tag=tenant:alice#x",
    "=mallory|'/bin/sh'!A1",
    "mallory" * 1000,
)
WRITTEN = "mallory</textarea><script>mallory(2)</script>"
"""What stands for a token of mallory's output."""


@dataclass
class Shared:
    """A hub with its store, its port and the page, and a worker that sends it frames."""

    hub: Hub
    db: Path
    port: HttpPort
    worker: FrameSender
    lines: list[str]
    sent: int = 0

    def request(self, request_id: str, tags: tuple[str, ...], nan: bool = False) -> None:
        """One request of four tokens, one of them with a NaN among its logits."""
        stamp = self.hub.admit(
            Admitted(request_id=request_id, engine_id=f"e-{request_id[:50]}", sequence=0, operation="chat",
                     model="tiny", arrival_ns=time.time_ns(), prompt_tokens=1, tags=tags)
        )  # fmt: skip
        assert stamp is not None
        rows, sampled = np.zeros(4, ROW), np.zeros(4, SAMPLED)
        for table in (rows, sampled):
            table["key"], table["index"] = stamp.key, range(4)
        rows["vocab"], rows["topk_ids"], rows["topk_logprobs"] = 100, np.arange(20), -3.0
        rows["nan_count"][2] = nan
        self.worker.send(stamp.server, rows, sampled)
        self.hub.finish(stamp.key, Finished(reason="stop", token_ids=(0, 1, 2, 3), end_ns=time.time_ns()))
        self.sent += 1

    def written(self) -> None:
        """Wait until each of them has its row."""
        assert self.hub.drain(20)

        def stored() -> bool:
            with suppress(sqlite3.OperationalError):  # the table is not made yet
                return len(self.rows("TRUE")) == self.sent
            return False

        within(20, stored)

    def ask(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{self.port.address}{path}", timeout=20, trust_env=False)

    def report(self, request_id: str) -> httpx.Response:
        return self.ask(f"/corevital/v1/requests/{quote(request_id, safe='')}")

    def browse(self, place: str, **query: str) -> httpx.Response:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(Application(self.db, None))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
                return await client.get(place, params=query or None)

        return asyncio.run(answer())

    def rows(self, where: str, *values: str) -> list[Any]:
        with closing(sqlite3.connect(self.db)) as store:
            found = store.execute(f"SELECT * FROM reports WHERE {where} ORDER BY id", values)  # noqa: S608 - of the test
            return found.fetchall()


@pytest.fixture
def shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> Iterator[Shared]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    install(monkeypatch, tmp_path, StandIn(lambda token: WRITTEN))
    db, lines = tmp_path / "corevital.db", []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend([log.TextFormatter().format(record), log.JsonFormatter().format(record)])

    handler = Lines()
    logger = logging.getLogger(log.LOGGER_NAME)
    logger.addHandler(handler)
    hub = Hub(Settings(db=db, db_content=True), "tiny", tokenizer=(str(tmp_path), None))
    hub.start()
    port = HttpPort(Address("127.0.0.1", 0), None, hub.health, hub.is_running, db)
    assert port.start()
    worker = FrameSender(Source("vllm", "v1", "raw"))
    yield Shared(hub, db, port, worker, lines)
    worker.close()
    port.close(10)
    hub.close()
    logger.removeHandler(handler)


def attack(shared: Shared) -> None:
    for text in HOSTILE:
        shared.request(text, (text, f"tenant:{text}"), nan=True)
    shared.written()


def test_no_tenant_is_in_a_metric(shared: Shared) -> None:
    shared.request(ALICE, (HER_TAG,))
    attack(shared)
    page = shared.ask("/metrics").text
    families = list(text_string_to_metric_families(page))
    counted = [s for family in families for s in family.samples if s.name == "corevital_requests_total"]
    assert sum(sample.value for sample in counted) >= len(HOSTILE) + 1
    labels = {name for family in families for sample in family.samples for name in sample.labels}
    assert "gen_ai_request_model" in labels
    assert not labels & {"request_id", "trace_id", "span_id", "tag", "tags", "tenant", "user", "forged"}
    assert "mallory" not in page
    assert "alice" not in page
    assert "forged" not in page


def test_a_log_line_is_one_line_and_has_no_tag_and_no_text(shared: Shared) -> None:
    shared.request(ALICE, (HER_TAG,))
    for text in HOSTILE:
        log._logged.clear()  # the first NaN of each, as in a new process
        shared.request(text, (f"tag of {text}",), nan=True)
        shared.written()
    about_them = [line for line in shared.lines if "mallory" in line]
    assert about_them, "the first NaN is logged with the request's id"
    for line in shared.lines:
        assert line.isprintable(), line
        assert "tag of" not in line
        assert WRITTEN not in line
        if line.startswith("{"):
            assert set(json.loads(line)) <= {"time", "level", "logger", "message", "process", "request_id", "trace_id"}
        else:
            assert line.startswith("corevital ")


def test_another_tenants_row_stays_unchanged(shared: Shared) -> None:
    shared.request(ALICE, (HER_TAG,))
    shared.written()
    before = shared.rows("request_id = ?", ALICE)
    assert len(before) == 1
    attack(shared)
    assert shared.rows("request_id = ?", ALICE) == before
    assert len(shared.rows("TRUE")) == len(HOSTILE) + 1


def test_a_report_is_of_the_id_that_was_asked_for_alone(shared: Shared) -> None:
    shared.request(ALICE, (HER_TAG,))
    shared.written()
    before = shared.report(ALICE)
    attack(shared)
    assert shared.report(ALICE).json() == before.json()
    for text in HOSTILE[:-1]:  # the last is cut
        answer = shared.report(text)
        assert answer.status_code == (404 if "\n" in text else 200), "no route has a line break"
        assert "alice" not in answer.text.replace(text, "").replace(json.dumps(text)[1:-1], "")
        assert WRITTEN not in answer.text, "text is in no report"
    for guess in ("chatcmpl-ali", "%", "chatcmpl-%", "chatcmpl-*", "", "chatcmpl-alice'--", "' OR '1'='1"):
        assert shared.report(guess).status_code == 404, guess


def test_the_page_lists_each_tenants_requests_under_its_own_tag(shared: Shared) -> None:
    shared.request(ALICE, (HER_TAG,))
    attack(shared)
    listed = shared.browse("/requests", tag=HER_TAG)
    links = [link for link in Seen(listed.text).links if link.startswith("/request?")]
    assert [parse_qs(urlsplit(link).query)["id"] for link in links] == [[ALICE]]
    for tag in (*(f"tenant:{text}" for text in HOSTILE[:-1]), "tenant:%", "tenant:", "tenant:ali", "tenant:alice' --"):
        found = Seen(shared.browse("/requests", tag=tag).text)
        opened = [parse_qs(urlsplit(link).query)["id"] for link in found.links if link.startswith("/request?")]
        assert [ALICE] not in opened, tag
        assert len(opened) <= 1, tag


def test_a_page_runs_nothing_of_an_id_a_tag_or_a_text(shared: Shared) -> None:
    attack(shared)
    listed = shared.browse("/requests")
    links = {link for link in Seen(listed.text).links if link.startswith("/request?")}
    assert len(links) == len(HOSTILE)
    shown = [shared.browse(link) for link in links]
    assert any(WRITTEN.replace("<", "&lt;").replace(">", "&gt;") in answer.text for answer in shown), (
        "kept, and escaped"
    )
    for answer in (listed, *shown):
        seen = Seen(answer.text)
        assert answer.status_code == 200
        assert all(script.startswith("/static/") for script in seen.scripts)
        assert (seen.handlers, "img" in seen.elements, "textarea" in seen.elements) == ([], False, False)
        assert all(place.startswith(("/", "#")) and not place.startswith("//") for place in seen.links + seen.loaded)
        assert all(WRITTEN not in place for place in seen.links + seen.loaded), "text is in no URL"


def test_what_a_tenant_can_claim(shared: Shared) -> None:
    """Ids and tags are what the client says: SECURITY.md names what follows. No row of another is changed or hidden."""
    shared.request(ALICE, (HER_TAG,))
    shared.written()
    before = shared.rows("request_id = ?", ALICE)
    shared.request(ALICE, (HER_TAG,))
    shared.written()
    assert shared.rows("request_id = ?", ALICE)[:1] == before
    both = shared.report(ALICE).json()
    assert len(both) == 2, "an id that two clients sent is answered with both"
    assert len({report["trace_id"] for report in both}) == 2
    shared.request("cmpl-alice", ())
    shared.written()
    assert shared.report("alice").status_code == 409, "the X-Request-Id alone is ambiguous now; the whole id is not"
    assert len(shared.report(ALICE).json()) == 2
