"""Telemetry of an API server in a hub process: what the server decides arrives there, and the metrics come back."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import TypeAdapter
from tests.harness.processes import within

from corevital.frames import engine_key as keys
from corevital.frames import events
from corevital.frames.engine_key import engine_key
from corevital.frames.events import CoreInfo, Event
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital.frames.remote_hub import RemoteHub
from corevital.guard import faults, guarded
from corevital_otel.losses import Loss
from corevital_otel.metrics.families import HubMetrics
from corevital_otel.sampling import Sampler, with_draw
from corevital_otel.service import separate
from corevital_otel.service.loop import Hub
from corevital_otel.service.separate import Handover
from corevital_otel.settings import Settings
from corevital_otel.spans.http_server import Posting
from corevital_otel.spans.posted import PostedSpan, read
from corevital_otel.store.reader import StoreReader

TRACE, CALLER = 0xAB << 100, 0xCD << 40
SENT = TypeAdapter(PostedSpan)


@pytest.fixture(autouse=True)
def _own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", keys.HUB, keys.HUB_KEY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setenv(keys.VARIABLE, os.urandom(32).hex())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(Settings(db=tmp_path / "corevital.db"), "tiny", identity=engine_key().hub)
    hub.start()
    yield hub
    hub.close()


def caller(sampled: bool = True, remote: bool = True) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return SpanContext(TRACE, CALLER, remote, flags, TraceState([("vendor", "1")]))


def inside(span: SpanContext) -> Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(span), Context())


def request(name: str = "r", **changes: Any) -> Admitted:
    values: dict[str, Any] = {"request_id": name, "engine_id": f"{name}-e", "sequence": 0, "operation": "chat"}
    return Admitted(**{**values, "model": "tiny", "arrival_ns": time.time_ns(), "prompt_tokens": 3, **changes})


def ended(**changes: Any) -> Finished:
    return Finished(**{"reason": "stop", "token_ids": (), "end_ns": time.time_ns(), **changes})


def as_received(about: Any, kind: Any = "admit") -> Any:
    """What the hub reads of an event."""
    body = events.encode(CoreInfo(engine="e"), [Event(kind, 1, about)])[0].removeprefix(events.MAGIC)
    return json.loads(body)["events"][0][2]


def test_a_sequence_of_an_api_server_is_a_row_in_its_callers_trace(hub: Hub, tmp_path: Path) -> None:
    remote = RemoteHub()
    api_server = Handover(remote, Sampler(1.0))
    token = context.attach(inside(caller()))
    try:
        stamp = api_server.admit(request(prompt_text="a secret", sample=None))
    finally:
        context.detach(token)
    assert stamp is not None
    assert api_server.admit(request("asks not to be measured", sample=False)) is None
    assert api_server.left_out.is_left_out
    assert api_server.left_out.proof == stamp.proof
    api_server.finish(stamp.key, ended(core=CoreFacts(queue_s=0.5)))
    assert api_server.drain(10)
    remote.close()
    (row,) = StoreReader(tmp_path / "corevital.db").list_reports(limit=10)
    assert (row.request_id, row.summary["corevital.queue_s"]) == ("r", 0.5)
    with contextlib.closing(sqlite3.connect(tmp_path / "corevital.db")) as store:
        found = store.execute("SELECT trace_id, parent_span_id FROM reports").fetchall()
    assert found == [(f"{TRACE:032x}", f"{CALLER:016x}")]


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("obeys", [False, True])
@pytest.mark.parametrize(
    "parent", [None, caller(), caller(sampled=False), caller(remote=False), caller(sampled=False, remote=False)]
)
def test_the_hub_keeps_what_the_api_server_has_drawn(parent: SpanContext | None, obeys: bool, rate: float) -> None:
    decided = Sampler(rate, obeys_caller=obeys).admit(request(), Context() if parent is None else inside(parent))
    received = TypeAdapter(Admitted).validate_python(as_received(with_draw(request(), decided)))
    for hubs_own in (Sampler(0.0), Sampler(1.0)):
        assert hubs_own.admit(received, Context()) == decided


def test_a_span_of_a_request_over_http_arrives_whole() -> None:
    posted: list[PostedSpan] = []
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Posting(posted.append))
    tracer = provider.get_tracer("fastapi", "0.1")
    tracer.start_span("send", inside(caller()), SpanKind.INTERNAL).end()
    span = tracer.start_span(
        "POST /v1/completions",
        inside(caller()),
        SpanKind.SERVER,
        {"http.route": "/v1", "http.request.header.x": ["a", "b"], "http.response.status_code": 500, "secret": "x"},
        [Link(caller())],
    )
    span.set_status(StatusCode.ERROR, "the prompt was: secret")
    span.end()
    (sent,) = posted
    found = read(SENT.validate_python(as_received(sent, "span")), Resource({"service.name": "s"}))
    assert found.attributes == {
        "http.route": "/v1",
        "http.request.header.x": ("a", "b"),
        "http.response.status_code": 500,
    }
    own, parent = found.get_span_context(), found.parent
    assert own is not None
    assert parent is not None
    assert (own, parent.span_id, parent.is_remote) == (span.get_span_context(), CALLER, True)
    assert own.trace_state.to_header() == "vendor=1"
    assert (found.kind, found.status.status_code, found.status.description) == (SpanKind.SERVER, StatusCode.ERROR, None)
    assert found.resource.attributes["service.name"] == "s"
    assert found.end_time is not None
    assert found.start_time is not None
    assert 0 <= found.end_time - found.start_time < 10**9


@pytest.mark.parametrize("change", [{"trace_id": 0}, {"span_id": 1 << 64}, {"end_ns": 1 << 63}, {"start_ns": -1}])
def test_a_span_that_cannot_be_is_counted_and_takes_nothing_else_with_it(hub: Hub, change: dict[str, int]) -> None:
    good = PostedSpan(name="n", trace_id=1, span_id=1, sampled=True, start_ns=2, end_ns=3)
    remote = RemoteHub()
    remote.span(SENT.validate_python(as_received(good, "span") | change))
    stamp = remote.admit(request())
    assert stamp is not None
    remote.finish(stamp.key, ended())
    assert remote.drain(10)
    remote.close()
    assert hub.counters.lost(Loss.EVENT_MALFORMED) == 1


def test_spans_that_cannot_be_sent_are_counted(hub: Hub) -> None:
    remote = RemoteHub()
    remote._lost_spans = 3
    remote.want()
    within(10, lambda: hub.counters.lost(Loss.SPAN_HUB_GONE) == 3)
    remote.close()


def test_metrics_of_the_hub_are_those_of_the_api_server(hub: Hub) -> None:
    now, registry = [0.0], CollectorRegistry()
    shown = HubMetrics(registry, clock=lambda: now[0])
    assert b"corevital_hub_up 0.0" in generate_latest(registry)
    remote = RemoteHub(metrics=shown.take)
    stamp = remote.admit(request(model="only here"))
    assert stamp is not None
    remote.finish(stamp.key, ended())
    counted = b'{finish_reason="stop",gen_ai_request_model="only here",risk_level="unknown"} 1.0'
    within(10, lambda: counted in generate_latest(registry))
    remote.close()
    page = generate_latest(registry).decode()
    assert "corevital_hub_up 1.0" in page
    assert "# TYPE corevital_risk_score histogram" in page
    assert "python_gc" not in page
    now[0] = 6.0
    assert b"corevital_requests" not in generate_latest(registry), "a hub that is silent has no gauges"
    assert b"corevital_hub_up 0.0" in generate_latest(registry)


def test_errors_of_both_processes_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")
    guarded("a test")(lambda: 1 / 0)()
    registry, samples = CollectorRegistry(), [["corevital_telemetry_faults_total", {}, 2]]
    HubMetrics(registry).take(json.dumps([["corevital_telemetry_faults", "", "counter", samples]]).encode())
    assert faults() > 0
    assert f"corevital_telemetry_faults_total {2 + faults():.1f}" in generate_latest(registry).decode()


def test_metrics_that_cannot_be_read_fail_no_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COREVITAL_RAISE", raising=False)
    registry = CollectorRegistry()
    HubMetrics(registry).take(b'[["corevital_requests", 1]]')
    assert b"corevital_hub_up 0.0" in generate_latest(registry)


def test_facts_that_arrive_before_their_sequence_are_kept_for_it(hub: Hub, tmp_path: Path) -> None:
    api_server, core = RemoteHub(), RemoteHub()
    stamp = api_server._stamp(7)
    core.facts(stamp, CoreFacts(preemptions=5))
    within(10, lambda: 7 in hub._cores._listener._early)  # type: ignore[attr-defined]
    hub._cores._listener.admits(7, request())
    assert hub._assembler._live[7].facts == CoreFacts(preemptions=5)
    api_server.close()
    core.close()


@pytest.mark.parametrize(
    ("settings", "endpoint", "on_report", "shared", "why"),
    [
        ({}, None, None, None, None),
        ({"hub": "tcp://127.0.0.1:1", "hub_key": "k" * 16}, None, None, None, "COREVITAL_HUB is set"),
        ({}, "http://localhost:4317", None, None, "the engine's own tracing is on"),
        ({}, None, print, None, "the program receives the reports itself"),
        ({}, None, None, "/tmp/x", "several API servers share PROMETHEUS_MULTIPROC_DIR"),  # noqa: S108 - only named here
    ],
)
def test_where_it_stays_a_thread(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    endpoint: str | None,
    on_report: Callable[..., object] | None,
    shared: str | None,
    why: str | None,
) -> None:
    if shared is not None:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", shared)
    assert separate.obstacle(Settings(process="process", **settings), endpoint, on_report) == why


def test_a_number_that_is_not_finite_is_refused(hub: Hub) -> None:
    remote = RemoteHub()
    bad, good = remote.admit(request("bad", temperature=float("nan"))), remote.admit(request("good"))
    assert bad is not None
    assert good is not None
    remote.finish(good.key, ended(core=CoreFacts(queue_s=float("inf"))))
    within(10, lambda: hub.counters.lost(Loss.EVENT_MALFORMED) == 2)
    remote.close()
