"""Inside a request the caller's trace context is current, or our server span in it; outside it neither is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import fastapi
import pytest
import starlette.applications
from fastapi.responses import PlainTextResponse
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from corevital.frames.lifecycle import Admitted
from corevital_otel.counters import Counters
from corevital_otel.http import follow_requests
from corevital_otel.http_spans import HttpSpans
from corevital_otel.sampling import Sampler
from corevital_otel.spans import SpanEmitter

TRACE, CALLER = "0123456789abcdef0123456789abcdef", "0123456789abcdef"


def headers(flags: str = "01", **more: str) -> list[tuple[bytes, bytes]]:
    found = {"traceparent": f"00-{TRACE}-{CALLER}-{flags}", **more}
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in found.items()]


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(starlette.applications.Starlette, "__call__", starlette.applications.Starlette.__call__)
    call = starlette.background.BackgroundTask.__call__
    yield
    starlette.background.BackgroundTask.__call__ = call  # type: ignore[method-assign]  # the instrumentation's


async def ask(app: Any, sent: list[tuple[bytes, bytes]], path: str = "/v1/completions") -> list[dict[str, Any]]:
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
    scope |= {"root_path": "", "query_string": b"prompt=secret", "client": ("203.0.113.7", 5), "headers": sent}
    scope |= {"scheme": "http", "server": ("127.0.0.1", 8000), "http_version": "1.1"}
    answers = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    await app(scope, receive, send)
    return answers


class Collected(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


class Server:
    """A FastAPI application whose endpoint notes the context that a request's span would be made in."""

    def __init__(self, rate: float, inwards: bool = False) -> None:
        self.sent = Collected()
        emitter = SpanEmitter(Counters())
        emitter._processor = self.sent  # type: ignore[assignment]
        self.http = HttpSpans(emitter, rate, propagate_inwards=inwards)
        self.sampler = Sampler(rate)
        self.parents: list[Context | None] = []
        self.seen: list[dict[str, str]] = []
        self.app = fastapi.FastAPI()
        for path in ("/v1/completions", "/health", "/metrics", "/ping"):
            self.app.add_api_route(path, self.answer)
        self.app.add_api_route("/fails", self.fail)
        follow_requests(self.http.instrument)

    async def answer(self, request: fastapi.Request) -> PlainTextResponse:
        self.seen.append(dict(request.headers))
        asked = Admitted(request_id="r", engine_id="e", sequence=0, operation="chat", model="m", arrival_ns=1,
                         prompt_tokens=1)  # fmt: skip
        self.parents.append(self.sampler.admit(asked, context.get_current()))
        return PlainTextResponse("ok")

    async def fail(self) -> None:
        raise RuntimeError("the prompt was: secret")

    def parent(self) -> Any:
        return trace.get_current_span(self.parents[-1]).get_span_context()


@pytest.fixture
def server() -> Callable[..., Server]:
    return Server


def test_without_server_spans_the_caller_is_the_parent_inside_the_request_and_gone_after_it() -> None:
    seen: list[Any] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        seen.append(trace.get_current_span().get_span_context())

    follow_requests()
    follow_requests()
    app = starlette.applications.Starlette()
    app.router = endpoint  # type: ignore[assignment]
    asyncio.run(ask(app, headers()))
    asyncio.run(ask(app, []))
    asyncio.run(ask(app, [(b"traceparent", b"nonsense")]))
    assert f"{seen[0].trace_id:032x}" == TRACE
    assert [found.is_valid for found in seen] == [True, False, False]
    assert not trace.get_current_span().get_span_context().is_valid


def test_the_server_span_stands_between_the_caller_and_the_request(server: Callable[..., Server]) -> None:
    running = server(1.0)
    answers = asyncio.run(ask(running.app, headers(tracestate="vendor=1", x_request_id="abc")))
    assert answers[0]["status"] == 200
    (span,) = running.sent.spans
    assert span.kind is SpanKind.SERVER
    assert (span.name, f"{span.context.trace_id:032x}") == ("GET /v1/completions", TRACE)
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == CALLER
    assert span.context.trace_state.to_header() == "vendor=1"
    assert running.parent().span_id == span.context.span_id
    assert running.parent().trace_state.to_header() == "vendor=1"
    found = dict(span.attributes or {})
    assert found["http.request.method"] == "GET"
    assert found["http.response.status_code"] == 200
    assert found["http.request.header.x_request_id"] == ("abc",)
    assert running.seen[0]["x-request-id"] == "abc"
    assert f"00-{TRACE}-{CALLER}-01" == running.seen[0]["traceparent"], "an engine without tracing sees what was sent"


def test_probes_have_no_span(server: Callable[..., Server]) -> None:
    running = server(1.0)
    for path in ("/health", "/metrics", "/metrics/", "/ping"):
        asyncio.run(ask(running.app, [], path))
    assert running.sent.spans == []


def test_nothing_of_the_client_or_its_text_is_in_a_server_span(server: Callable[..., Server]) -> None:
    running = server(1.0)
    with pytest.raises(RuntimeError):
        asyncio.run(ask(running.app, headers(user_agent="someone"), "/fails"))
    (span,) = running.sent.spans
    assert span.status.status_code is StatusCode.ERROR
    written = span.to_json()
    for word in ("secret", "203.0.113.7", "someone"):
        assert word not in written


def test_a_caller_that_does_not_sample_gets_no_span(server: Callable[..., Server]) -> None:
    running = server(1.0)
    asyncio.run(ask(running.app, headers("00")))
    assert running.sent.spans == []
    assert f"{running.parent().trace_id:032x}" == TRACE


def test_a_server_span_that_was_not_drawn_is_sent_if_its_request_is_kept(server: Callable[..., Server]) -> None:
    running = server(0.0)
    asyncio.run(ask(running.app, []))
    parent = f"{running.parent().span_id:016x}"
    assert running.sent.spans == []
    running.http.keep(parent)
    (span,) = running.sent.spans
    assert span.context.trace_flags.sampled
    running.http.keep(parent)
    assert len(running.sent.spans) == 1


def test_an_engine_with_tracing_of_its_own_is_told_of_the_server_span(server: Callable[..., Server]) -> None:
    running = server(1.0, inwards=True)
    asyncio.run(ask(running.app, headers()))
    (span,) = running.sent.spans
    assert running.seen[0]["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"


def test_an_application_that_was_put_together_before_is_followed_with_all_its_layers(
    server: Callable[..., Server],
) -> None:
    running = server(1.0)
    passed = []

    @running.app.middleware("http")
    async def layer(request: fastapi.Request, call_next: Any) -> Any:
        passed.append(request.url.path)
        return await call_next(request)

    running.app.middleware_stack = running.app.build_middleware_stack()
    for _ in range(2):
        asyncio.run(ask(running.app, headers()))
    assert len(running.sent.spans) == len(passed) == 2


def test_another_instrumentation_keeps_its_place(server: Callable[..., Server]) -> None:
    running = server(1.0)
    running.app._is_instrumented_by_opentelemetry = True  # type: ignore[attr-defined]
    asyncio.run(ask(running.app, headers()))
    assert running.sent.spans == []
    assert f"{running.parent().span_id:016x}" == CALLER
