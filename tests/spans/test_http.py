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
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, SpanKind, StatusCode

from corevital import guard
from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel.counters import Counters
from corevital_otel.report import Admission, Features, Health, RequestReport, Risk
from corevital_otel.sampling import Sampler
from corevital_otel.spans import http_server
from corevital_otel.spans.emitter import SpanEmitter
from corevital_otel.spans.http_context import follow_requests
from corevital_otel.spans.http_server import HttpSpans

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

    def __init__(self, rate: float, inwards: bool = False, sampler: Sampler | None = None) -> None:
        self.sent = Collected()
        emitter = SpanEmitter(Counters())
        emitter._processor = self.sent  # type: ignore[assignment]
        self.sampler = sampler or Sampler(rate)
        self.http = HttpSpans(emitter, self.sampler, propagate_inwards=inwards)
        self.admissions: list[Admission] = []
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
        self.admissions.append(self.sampler.admit(asked, context.get_current()))
        return PlainTextResponse("ok")

    async def fail(self) -> None:
        raise RuntimeError("the prompt was: secret")

    def parent(self) -> Any:
        return self.admissions[-1].parent or INVALID_SPAN_CONTEXT


@pytest.fixture
def server() -> Callable[..., Server]:
    return Server


def test_without_server_spans_the_caller_is_the_parent_only_inside_the_request() -> None:
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


def is_sampled_at(running: Server, trace_id: int, flags: str) -> bool:
    """Whether a caller's request gets a server span at once; that the request inside is drawn likewise is asserted."""
    sent = len(running.sent.spans)
    traceparent = f"00-{trace_id:032x}-{CALLER}-{flags}".encode()
    asyncio.run(ask(running.app, [(b"traceparent", traceparent)]))
    found = len(running.sent.spans) > sent
    admission = running.admissions[-1]
    assert admission.exported
    assert (admission.drawn, bool(running.parent().trace_flags.sampled)) == (found, found)
    assert f"{running.parent().span_id:016x}" != CALLER, "the server span is the parent"
    return found


@pytest.mark.parametrize("flags", ["00", "01"])
def test_a_sampler_that_is_not_parent_based_ignores_the_callers_flag(server: Callable[..., Server], flags: str) -> None:
    low, high = 1 << 64 | 1, 1 << 64 | 2**64 - 1
    for rate, drawn in ((1.0, (True, True)), (0.0, (False, False)), (0.5, (True, False))):
        running = server(rate, sampler=Sampler(rate, by_trace_id=True, obeys_caller=False))
        assert tuple(is_sampled_at(running, trace_id, flags) for trace_id in (low, high)) == drawn
        aside = f"{running.parent().span_id:016x}"
        before = len(running.sent.spans)
        running.http.keep(aside)
        assert len(running.sent.spans) - before == (not drawn[1]), "kept after all"


@pytest.mark.parametrize("obeys_caller", [True, False])
def test_a_ratio_draws_a_request_without_a_caller_by_the_trace_of_its_server_span(
    server: Callable[..., Server], obeys_caller: bool
) -> None:
    running = server(0.5, sampler=Sampler(0.5, by_trace_id=True, obeys_caller=obeys_caller))
    for _ in range(40):
        asyncio.run(ask(running.app, []))
        admission = running.admissions[-1]
        assert admission.drawn is (running.parent().trace_id & (2**64 - 1) < 2**63)
        assert admission.exported
    assert 0 < len(running.sent.spans) == sum(admission.drawn for admission in running.admissions) < 40


def test_an_engine_with_own_tracing_receives_the_server_span(server: Callable[..., Server]) -> None:
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


def is_the_callers(found: Any, flags: int = 1) -> bool:
    return (f"{found.trace_id:032x}", f"{found.span_id:016x}", int(found.trace_flags)) == (TRACE, CALLER, flags)


@pytest.mark.parametrize("variable", ["OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS"])
@pytest.mark.parametrize("flags", [0, 1])
def test_an_excluded_path_has_no_span_and_keeps_its_caller(
    server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, variable: str, flags: int
) -> None:
    monkeypatch.setenv(variable, "v1/completions")
    running = server(1.0)
    asyncio.run(ask(running.app, headers(f"0{flags}", tracestate="vendor=1")))
    assert running.sent.spans == []
    assert is_the_callers(running.parent(), flags)
    assert running.parent().trace_state.to_header() == "vendor=1"
    assert is_exported_by(running) is bool(flags)
    asyncio.run(ask(running.app, headers(), "/other"))
    asyncio.run(ask(running.app, []))
    assert running.admissions[-1].parent is None, "no caller, and none of the request before"


def is_exported_by(running: Server) -> bool:
    return running.admissions[-1].exported


def make_report() -> RequestReport:
    admitted = Admitted(request_id="r", engine_id="e", sequence=0, operation="chat", model="m", arrival_ns=1,
                        prompt_tokens=1)  # fmt: skip
    return RequestReport(
        admitted=admitted,
        outcome=Finished(reason="stop", token_ids=(), end_ns=2),
        features=Features(),
        health=Health(),
        risk=Risk(score=None, level="unknown"),
    )


@pytest.mark.parametrize("path", ["/health", "/metrics", "/ping"])
def test_a_probe_that_reaches_the_engine_keeps_its_caller(server: Callable[..., Server], path: str) -> None:
    running = server(1.0)
    asyncio.run(ask(running.app, headers(), path))
    assert running.sent.spans == []
    assert is_the_callers(running.parent())


def test_instrumentation_that_is_suppressed_for_a_request_keeps_its_caller(server: Callable[..., Server]) -> None:
    from opentelemetry.instrumentation.utils import suppress_http_instrumentation

    running = server(1.0)

    async def suppressed() -> None:
        with suppress_http_instrumentation():
            await ask(running.app, headers())

    asyncio.run(suppressed())
    assert running.sent.spans == []
    assert is_the_callers(running.parent())


@pytest.mark.parametrize(("excluded", "spans"), [("v1/completions", 0), ("other", 1)])
@pytest.mark.parametrize("own_spans", [True, False])
def test_the_users_own_instrumentation_makes_server_spans_and_an_excluded_path_keeps_its_caller(
    server: Callable[..., Server], excluded: str, spans: int, own_spans: bool
) -> None:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    theirs, provider = Collected(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(theirs)
    running = server(1.0)
    FastAPIInstrumentor.instrument_app(
        running.app, tracer_provider=provider, excluded_urls=excluded, exclude_spans=["receive", "send"]
    )
    follow_requests(running.http.instrument if own_spans else None)
    asyncio.run(ask(running.app, headers()))
    assert running.sent.spans == []
    assert [span.kind for span in theirs.spans] == [SpanKind.SERVER] * spans
    if spans:
        assert running.parent().span_id == theirs.spans[0].context.span_id
        assert is_the_callers(theirs.spans[0].parent)
    else:
        assert is_the_callers(running.parent())


def test_a_span_made_around_the_application_is_the_parent(server: Callable[..., Server]) -> None:
    running, theirs = server(1.0), TracerProvider(shutdown_on_exit=False).get_tracer("around")
    follow_requests()

    async def around() -> Any:
        with theirs.start_as_current_span("around", kind=SpanKind.SERVER) as span:
            await ask(running.app, headers())
            return span.get_span_context()

    assert asyncio.run(around()).span_id == running.parent().span_id


def test_a_server_span_that_is_never_recorded_is_never_a_parent(server: Callable[..., Server]) -> None:
    running = server(1.0)
    asyncio.run(ask(running.app, headers("00")))
    assert running.sent.spans == []
    assert is_the_callers(running.parent(), 0)


def test_an_application_inside_another_keeps_the_outer_ones_span_or_caller(
    server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXCLUDED_URLS", "quiet")
    running, inner = server(1.0), fastapi.FastAPI()
    inner.add_api_route("/v1/completions", running.answer)
    for path in ("/loud", "/quiet"):
        running.app.mount(path, inner)
    asyncio.run(ask(running.app, headers(), "/loud/v1/completions"))
    (span,) = running.sent.spans
    assert running.parent().span_id == span.context.span_id
    asyncio.run(ask(running.app, headers(), "/quiet/v1/completions"))
    assert len(running.sent.spans) == 1
    assert is_the_callers(running.parent())


@pytest.mark.parametrize("own_spans", [True, False])
@pytest.mark.parametrize("excluded", ["", "ws"])
def test_a_websocket_has_its_caller(
    server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, own_spans: bool, excluded: str
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXCLUDED_URLS", excluded)
    running = server(1.0)
    follow_requests(running.http.instrument if own_spans else None)

    async def talk(socket: fastapi.WebSocket) -> None:
        await socket.accept()
        asked = Admitted(request_id="r", engine_id="e", sequence=0, operation="chat", model="m", arrival_ns=1,
                         prompt_tokens=1)  # fmt: skip
        running.admissions.append(running.sampler.admit(asked, context.get_current()))
        await socket.close()

    running.app.add_api_websocket_route("/ws", talk)
    scope: dict[str, Any] = {"type": "websocket", "path": "/ws", "raw_path": b"/ws", "root_path": "", "scheme": "ws"}
    scope |= {"query_string": b"", "headers": headers(), "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1)}
    scope |= {"subprotocols": []}

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        pass

    asyncio.run(running.app(scope, receive, send))
    assert f"{running.parent().trace_id:032x}" == TRACE
    if excluded or not own_spans:
        assert is_the_callers(running.parent())
        assert running.sent.spans == []
    else:
        assert running.parent().span_id == running.sent.spans[0].context.span_id


def test_a_wrong_pattern_of_excluded_paths_fails_once_and_keeps_callers(
    server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREVITAL_RAISE", "0")
    monkeypatch.setenv("OTEL_PYTHON_EXCLUDED_URLS", "(")
    running, before = server(1.0), guard.faults()
    for _ in range(3):
        asyncio.run(ask(running.app, headers()))
        assert is_the_callers(running.parent())
    assert guard.faults() == before + 1


def texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for one in value for text in texts(one)] if isinstance(value, tuple | list) else []


def test_strings_of_a_client_are_cut_in_server_spans(
    server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "x-request-id,x-.*")
    running = server(1.0)
    state = ",".join(f"vendor{number}={'v' * 200}" for number in range(30))
    sent = headers(x_request_id="r" * 40_000, host="h" * 40_000, tracestate=state)
    sent += [(b"x-request-id", b"again" * 1000)] * 100
    sent += [(f"x-{number}".encode() * 200, b"v" * 5000) for number in range(100)]
    asyncio.run(ask(running.app, sent, "/v1/" + "p" * 40_000))
    asyncio.run(ask(running.app, sent))
    for span in running.sent.spans:
        found: dict[str, Any] = dict(span.attributes or {})
        assert found["http.request.header.x_request_id"][0] == "r" * 256
        strings = [*found, span.name, *texts(tuple(found.values()))]
        assert max(len(text.encode()) for text in strings) <= 256
        assert sum(len(text) for text in strings) < 30_000
        assert len(span.context.trace_state.to_header()) <= 512
        assert span.parent is not None
    assert len(running.sent.spans) == 2
    assert 0 < len(running.parent().trace_state.to_header()) <= 512


@pytest.mark.parametrize("value", [b"\xff\\", b"\xff\\x", b"\xc3(", b"\x80" * 1000])
def test_a_header_that_is_not_text_fails_no_request(server: Callable[..., Server], value: bytes) -> None:
    running = server(1.0)
    for name in (b"x-request-id", b"x-other"):
        answers = asyncio.run(ask(running.app, [*headers(), (name, value)]))
        assert answers[0]["status"] == 200
        assert is_the_callers(running.sent.spans[-1].parent)


def test_spans_put_aside_are_bounded_in_bytes(server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_ASIDE_BYTES", 50_000)
    running = server(0.0)
    for number in range(100):
        asyncio.run(ask(running.app, [(b"x-request-id", b"%d" % number + b"r" * 9000)]))
    aside = running.http._aside
    assert 10 < len(aside._ended) < 25
    assert aside._bytes <= 50_000
    running.http.keep(f"{running.parent().span_id:016x}")
    assert len(running.sent.spans) == 1
    for number in range(10_000):
        running.http.keep(f"{number:016x}")
    assert len(aside._wanted) <= 4096
    for span_id in list(aside._ended):
        running.http.keep(span_id)
    assert aside._bytes == 0


def test_what_is_kept_of_a_requests_context_is_its_parent_alone(server: Callable[..., Server]) -> None:
    """A report may wait for the store for long; the server span and the caller's baggage do not wait with it."""
    running = server(1.0)
    asyncio.run(ask(running.app, headers(baggage="k=" + "b" * 4000, x_request_id="r" * 4000)))
    assert type(running.admissions[-1].parent) is SpanContext


def test_a_header_that_cannot_be_read_neither_fails_a_request_nor_reaches_the_log_raw(
    server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    wild = [(b"baggage", b"key=\xc2\x9b2J\x1b[31m" + b"x" * 5000), (b"tracestate", b"a\x9b=\x07"), *headers()]
    running = server(1.0)
    for instrument in (running.http.instrument, None):
        follow_requests(instrument)
        assert asyncio.run(ask(running.app, wild))[0]["status"] == 200
    assert caplog.records, "OpenTelemetry says what it cannot read"
    for record in caplog.records:
        assert record.getMessage().isprintable(), record
        assert len(record.getMessage()) < 1000
