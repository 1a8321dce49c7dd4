"""vLLM's own HTTP application, without an engine behind it: its requests get server spans."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import starlette.applications
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from corevital_otel.counters import Counters
from corevital_otel.http import follow_requests
from corevital_otel.http_spans import HttpSpans
from corevital_otel.spans import SpanEmitter

build = pytest.importorskip("vllm.entrypoints.launchers.app", reason="this vLLM builds its application elsewhere")


class Collected(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def test_vllms_application_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    monkeypatch.setattr(starlette.applications.Starlette, "__call__", starlette.applications.Starlette.__call__)
    monkeypatch.setattr(starlette.background.BackgroundTask, "__call__", starlette.background.BackgroundTask.__call__)
    emitter, sent = SpanEmitter(Counters()), Collected()
    emitter._processor = sent  # type: ignore[assignment]
    follow_requests(HttpSpans(emitter, 1.0).instrument)
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(["--enable-request-id-headers"])
    app = build.build_app(arguments, ("generate",))

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # probes ask the engine
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [await client.get("/version", headers={"X-Request-Id": "mine"}), await client.get("/ping")]

    reply, _ = asyncio.run(ask())
    assert reply.status_code == 200
    assert reply.headers["X-Request-Id"] == "mine"
    (span,) = sent.spans
    assert span.name == "GET /version"
    assert dict(span.attributes or {})["http.request.header.x_request_id"] == ("mine",)
