"""The HTTP server span around a request: ``opentelemetry-instrumentation-fastapi``, with a provider of our own.

It is drawn by the same rules as the request inside it. One that is not drawn is kept aside when it ends, for the case
that its request turns out to be at risk, and forgotten soon otherwise. Only what says how HTTP went is exported: no
address of a client, no query, no exception's text.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, TraceFlags, format_span_id
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from corevital.log import warn_once
from corevital_otel import sampling
from corevital_otel.spans import SpanEmitter

PROBES: Final = r"/(health|metrics|ping)/?$"
"""Paths that get no span; ``OTEL_PYTHON_FASTAPI_EXCLUDED_URLS`` adds to them."""

_ASIDE: Final = 4096
"""Ended spans of requests that were not drawn, kept until their requests are reported: the oldest go first."""
_KEPT: Final = (
    "http.request.method", "http.response.status_code", "http.route", "http.request.header.",
    "http.response.header.", "url.path", "url.scheme", "server.address", "server.port", "network.protocol.version",
    "error.type", "http.method", "http.status_code", "http.scheme", "http.flavor",
)  # fmt: skip
_SEMCONV: Final = "OTEL_SEMCONV_STABILITY_OPT_IN"
_HEADERS: Final = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST"


class HttpSpans:
    """Makes server spans.

    Args:
        emitter: where they go.
        rate: share that is drawn where no caller decides.
        propagate_inwards: write the server span into the request's own ``traceparent``, for an engine that makes spans
            itself and reads the header.
    """

    def __init__(self, emitter: SpanEmitter, rate: float, *, propagate_inwards: bool = False) -> None:
        self._aside = _Aside(emitter.processor)
        self._provider = emitter.provider(_Drawn(rate), self._aside)
        self._propagate_inwards = propagate_inwards

    def instrument(self, application: Any) -> bool:
        """Put a span around an application's requests. False where another instrumentation does so, or it cannot be."""
        if hasattr(application, "_corevital_spans"):
            return bool(application._corevital_spans)
        application._corevital_spans = self._instrument(application)
        return bool(application._corevital_spans)

    def keep(self, parent_id: str | None) -> None:
        """The request inside the span with this id, in hex, is kept though it was not drawn: so is the span."""
        if parent_id is not None:
            self._aside.keep(parent_id)

    def _instrument(self, application: Any) -> bool:
        if getattr(application, "_is_instrumented_by_opentelemetry", False):
            return False  # the user's own: its span becomes current and is the parent
        try:
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        except ImportError as error:
            warn_once("http:missing", "there are no spans of HTTP requests (%s): pip install "
                      "opentelemetry-instrumentation-fastapi, or set COREVITAL_HTTP_SPANS=0", error)  # fmt: skip
            return False
        asked = os.environ.get("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS") or os.environ.get("OTEL_PYTHON_EXCLUDED_URLS")
        captured = [name for name in os.environ.get(_HEADERS, "").split(",") if name.strip()]
        unset = _SEMCONV not in os.environ
        if unset:  # read once, when the first application is instrumented: the stable names of HTTP attributes
            os.environ[_SEMCONV] = "http"
        stack = getattr(application, "middleware_stack", None)
        if stack is not None:  # SageMaker's standards, which vLLM loads, have built it early: it is wrapped as it is
            application.build_middleware_stack = lambda: stack
        try:
            FastAPIInstrumentor.instrument_app(
                application,
                server_request_hook=self._started,
                tracer_provider=self._provider,
                meter_provider=metrics.NoOpMeterProvider(),
                excluded_urls=",".join(filter(None, (PROBES, asked))),
                http_capture_headers_server_request=[*captured, "x-request-id"],
                exclude_spans=["receive", "send"],
            )
        finally:
            if unset:
                del os.environ[_SEMCONV]
        if stack is not None:
            application.middleware_stack = application.build_middleware_stack()
        return True

    def _started(self, span: Span, scope: dict[str, Any]) -> None:
        if self._propagate_inwards:
            carrier: dict[str, str] = {}
            propagate.inject(carrier, trace.set_span_in_context(span))
            ours = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in carrier.items()]
            rest = [(name, value) for name, value in scope["headers"] if name.decode("latin-1").lower() not in carrier]
            scope["headers"] = rest + ours


class _Drawn(Sampler):
    """A caller's flag decides; where there is no caller, the rate does. What it leaves out is recorded all the same."""

    def __init__(self, rate: float) -> None:
        self._draw = sampling.Sampler(rate).draw
        self._rate = rate

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        caller = trace.get_current_span(parent_context).get_span_context()
        if caller.is_valid:
            decision = Decision.RECORD_AND_SAMPLE if caller.trace_flags.sampled else Decision.DROP
            return SamplingResult(decision, attributes, caller.trace_state)
        drawn = self._draw(str(trace_id))
        return SamplingResult(Decision.RECORD_AND_SAMPLE if drawn else Decision.RECORD_ONLY, attributes)

    def get_description(self) -> str:
        return f"corevital{{{self._rate}}}"


class _Aside(SpanProcessor):
    """Hands drawn server spans on, and keeps the others for a while."""

    def __init__(self, inner: SpanProcessor | None) -> None:
        self._inner = inner
        self._ended: dict[str, ReadableSpan] = {}
        self._wanted: dict[str, None] = {}
        self._lock = threading.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        """A span has ended; of background tasks there are some that we did not ask for."""
        own = span.get_span_context()
        if self._inner is None or own is None or span.kind is not SpanKind.SERVER:
            return
        if not own.trace_flags.sampled:
            with self._lock:
                span_id = format_span_id(own.span_id)
                if span_id not in self._wanted:
                    _bounded(self._ended)[span_id] = span
                    return
                del self._wanted[span_id]
        self._inner.on_end(_as_sent(span, own))

    def keep(self, span_id: str) -> None:
        """A span is wanted after all, whether it has ended or will."""
        if self._inner is None:
            return
        with self._lock:
            span = self._ended.pop(span_id, None)
            if span is None:
                _bounded(self._wanted)[span_id] = None
                return
        own = span.get_span_context()
        if own is not None:
            self._inner.on_end(_as_sent(span, own))


def _bounded(kept: dict[str, Any]) -> dict[str, Any]:
    if len(kept) >= _ASIDE:
        del kept[next(iter(kept))]
    return kept


def _as_sent(span: ReadableSpan, own: SpanContext) -> ReadableSpan:
    """The span with what may leave the process, and sampled."""
    context = SpanContext(own.trace_id, own.span_id, False, TraceFlags(TraceFlags.SAMPLED), own.trace_state)
    return ReadableSpan(
        name=span.name,
        context=context,
        parent=span.parent,
        resource=span.resource,
        attributes={name: value for name, value in (span.attributes or {}).items() if name.startswith(_KEPT)},
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
