"""vLLM's own HTTP application, without an engine behind it: server spans, and our route behind its key."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import starlette.applications
from opentelemetry import context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from corevital.engines.vllm.hooks import _FOLLOWED
from corevital.engines.vllm.own_server import protect
from corevital.frames.lifecycle import Admitted
from corevital_otel.counters import Counters
from corevital_otel.http.engine_route import EngineRoute
from corevital_otel.http.reports import Reports
from corevital_otel.sampling import Sampler
from corevital_otel.spans.emitter import SpanEmitter
from corevital_otel.spans.http_context import follow_requests
from corevital_otel.spans.http_server import HttpSpans

build = pytest.importorskip("vllm.entrypoints.launchers.app", reason="this vLLM builds its application elsewhere")


ASKED = Admitted(request_id="r", engine_id="e", sequence=0, operation="chat", model="m", arrival_ns=1, prompt_tokens=1)


class Collected(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@pytest.mark.parametrize("excluded", [False, True])
def test_vllms_application_is_followed(monkeypatch: pytest.MonkeyPatch, excluded: bool) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    monkeypatch.setattr(starlette.applications.Starlette, "__call__", starlette.applications.Starlette.__call__)
    monkeypatch.setattr(starlette.background.BackgroundTask, "__call__", starlette.background.BackgroundTask.__call__)
    if excluded:
        monkeypatch.setenv("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "noted")
    emitter, sent = SpanEmitter(Counters()), Collected()
    emitter._processor = sent  # type: ignore[assignment]
    follow_requests(HttpSpans(emitter, Sampler(1.0)).instrument)
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(["--enable-request-id-headers"])
    app = build.build_app(arguments, ("generate",))

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # probes ask the engine
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            headers = {"X-Request-Id": "mine", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
            return [await client.get("/noted", headers=headers), await client.get("/ping")]

    parents: list[int] = []

    async def noted() -> None:
        parent = Sampler(1.0).admit(ASKED, context.get_current()).parent
        parents.append(0 if parent is None else parent.span_id)

    app.add_api_route("/noted", noted)
    reply, _ = asyncio.run(ask())
    assert reply.status_code == 200
    assert reply.headers["X-Request-Id"] == "mine"
    if excluded:
        assert sent.spans == []
        assert parents[0] == int("2" * 16, 16), "the caller is the parent"
        return
    (span,) = sent.spans
    assert parents[0] == span.context.span_id
    assert span.name == "GET /noted"
    assert dict(span.attributes or {})["http.request.header.x_request_id"] == ("mine",)


class Engine:
    """A stand-in for an engine that is followed."""


@pytest.mark.parametrize("key", [None, "sesame"])
def test_the_route_to_reports_is_behind_vllms_own_key(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    given = [] if key is None else ["--api-key", key]
    app = build.build_app(make_arg_parser(FlexibleArgumentParser()).parse_args(given), ("generate",))
    app.state.engine_client = Engine()
    app.state.engine_client.__dict__[_FOLLOWED] = object()
    EngineRoute(protect, Reports(lambda request_id: True, None)).add(app)

    async def ask(**headers: str) -> int:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await client.get("/corevital/v1/requests/one", headers=headers)).status_code

    assert asyncio.run(ask()) == (425 if key is None else 401)
    assert asyncio.run(ask(Authorization="Bearer wrong")) == (425 if key is None else 401)
    assert asyncio.run(ask(Authorization="Bearer sesame")) == 425
