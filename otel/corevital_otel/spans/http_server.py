"""The HTTP server span around a request: ``opentelemetry-instrumentation-fastapi``, with a private provider.

It is drawn by the same rules as the request inside it. One that is not drawn is set aside when it ends, in case its
request is kept after all, and forgotten otherwise. Only attributes that describe the HTTP exchange are exported: no
client's address, no query, no exception's text.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, TraceFlags, format_span_id
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from corevital.guard import guarded
from corevital.log import warn_once
from corevital.text import cut
from corevital_otel import sampling
from corevital_otel.spans.emitter import SpanEmitter
from corevital_otel.spans.posted import PostedSpan, read, write

PROBES: Final = r"/((health|metrics|ping)/?$|corevital/v1/)"
"""Paths that get no span; ``OTEL_PYTHON_FASTAPI_EXCLUDED_URLS`` adds to them."""

_ASIDE: Final = 4096
_ASIDE_BYTES: Final = 16 << 20
"""Ended spans of requests that were not drawn, kept until their requests are reported; the oldest go first."""

_SPAN_BYTES: Final = 2048
"""Memory of a span without its text, about."""

_MAX_HEADERS: Final = 16
"""Captured headers that a span keeps, in addition to the request's id."""

_MAX_VALUES: Final = 4
"""Values of one header that a span keeps."""
_KEPT: Final = (
    "http.request.method", "http.response.status_code", "http.route", "http.request.header.",
    "http.response.header.", "url.path", "url.scheme", "server.address", "server.port", "network.protocol.version",
    "error.type", "http.method", "http.status_code", "http.scheme", "http.flavor",
)  # fmt: skip
_HEADER: Final = ("http.request.header.", "http.response.header.")
_REQUEST_ID: Final = "http.request.header.x_request_id"
_SEMCONV: Final = "OTEL_SEMCONV_STABILITY_OPT_IN"


class HttpInstrumentation:
    """Puts server spans around requests.

    Args:
        provider: makes the spans.
        propagate_inwards: write the server span into the request's ``traceparent``, for an engine that makes spans
            and reads the header.
    """

    def __init__(self, provider: TracerProvider, *, propagate_inwards: bool = False) -> None:
        self._provider = provider
        self._propagate_inwards = propagate_inwards

    def instrument(self, application: Any) -> bool:
        """Put a span around an application's requests. False if another instrumentation does so, or it fails."""
        if hasattr(application, "_corevital_spans"):
            return bool(application._corevital_spans)
        application._corevital_spans = False  # and stays so if it fails
        application._corevital_spans = self._instrument(application)
        return bool(application._corevital_spans)

    def _instrument(self, application: Any) -> bool:
        if getattr(application, "_is_instrumented_by_opentelemetry", False):
            return False  # by the user: its span becomes current and is the parent
        try:
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        except ImportError as error:
            warn_once("http:missing", "no spans of HTTP requests (%s): pip install "
                      "opentelemetry-instrumentation-fastapi, or set COREVITAL_HTTP_SPANS=0", error)  # fmt: skip
            return False
        asked = os.environ.get("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS") or os.environ.get("OTEL_PYTHON_EXCLUDED_URLS")
        unset = _SEMCONV not in os.environ
        if unset:  # read once, when the first application is instrumented: the stable names of HTTP attributes
            os.environ[_SEMCONV] = "http"
        stack = getattr(application, "middleware_stack", None)
        if stack is not None:  # some libraries build it early, such as SageMaker's standards: it is wrapped
            application.build_middleware_stack = lambda: stack
        try:
            FastAPIInstrumentor.instrument_app(
                application,
                server_request_hook=self._started,
                tracer_provider=self._provider,
                meter_provider=metrics.NoOpMeterProvider(),
                excluded_urls=",".join(filter(None, (PROBES, asked))),
                exclude_spans=["receive", "send"],
            )
        finally:
            if unset:
                del os.environ[_SEMCONV]
        if stack is not None:
            application.middleware_stack = application.build_middleware_stack()
        return True

    @guarded("the start of a server span")
    def _started(self, span: Span, scope: dict[str, Any]) -> None:
        # not the instrumentation's capture: it decodes every header, and a request with one that it cannot decode fails
        if span.is_recording():
            ids = [value for name, value in scope["headers"] if name.lower() == b"x-request-id"]
            if ids:
                span.set_attribute(_REQUEST_ID, [cut(value.decode("utf-8", "replace")) for value in ids[:_MAX_VALUES]])
        if self._propagate_inwards:
            carrier: dict[str, str] = {}
            propagate.inject(carrier, trace.set_span_in_context(span))
            ours = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in carrier.items()]
            rest = [(name, value) for name, value in scope["headers"] if name.decode("latin-1").lower() not in carrier]
            scope["headers"] = rest + ours


class HttpSpans(HttpInstrumentation):
    """Makes server spans, and takes in those of API servers; keeps some of those that were not drawn for a while.

    Args:
        emitter: where they go.
        sampler: that of the requests inside.
        propagate_inwards: see :class:`HttpInstrumentation`.
    """

    def __init__(self, emitter: SpanEmitter, sampler: sampling.Sampler, *, propagate_inwards: bool = False) -> None:
        self._aside = _Aside(emitter.processor)
        self._resource = emitter.resource
        super().__init__(emitter.provider(Drawn(sampler), self._aside), propagate_inwards=propagate_inwards)

    def keep(self, parent_id: str | None) -> None:
        """Keep the span with this id, in hex: the request inside it is kept although it was not drawn."""
        if parent_id is not None:
            self._aside.keep(parent_id)

    def take(self, span: PostedSpan) -> None:
        """A span of an API server has ended."""
        self._aside.on_end(read(span, self._resource))


class Drawn(Sampler):
    """As the requests inside are drawn: by the caller's flag if that is obeyed, else by the rate.

    What the rate leaves out is still recorded.
    """

    def __init__(self, sampler: sampling.Sampler) -> None:
        self._sampler = sampler

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
        """See :class:`Sampler`."""
        caller = trace.get_current_span(parent_context).get_span_context()
        state = sampling.bounded_state(caller.trace_state) if caller.is_valid else None
        if self._sampler.obeys_caller and caller.is_valid:
            drawn, otherwise = bool(caller.trace_flags.sampled), Decision.DROP
        else:
            drawn, otherwise = self._sampler.draw(str(trace_id), trace_id), Decision.RECORD_ONLY
        return SamplingResult(Decision.RECORD_AND_SAMPLE if drawn else otherwise, attributes, state)

    def get_description(self) -> str:
        """See :class:`Sampler`."""
        return "corevital"


class Posting(SpanProcessor):
    """Sends every server span that ends to a hub process, which drops those that are not kept.

    Args:
        post: sends one; it must not wait.
    """

    def __init__(self, post: Callable[[PostedSpan], None]) -> None:
        self._post = post

    @guarded("the end of a server span")
    def on_end(self, span: ReadableSpan) -> None:
        """A span has ended; see :class:`_Aside`."""
        own = span.get_span_context()
        if own is not None and span.kind is SpanKind.SERVER:
            self._post(write(_as_sent(span, own), own))


class _Aside(SpanProcessor):
    """Passes drawn server spans on, and keeps the others for a while."""

    def __init__(self, inner: SpanProcessor | None) -> None:
        self._inner = inner
        self._ended: dict[str, tuple[ReadableSpan, int]] = {}
        self._bytes = 0  # of those
        self._wanted: dict[str, None] = {}
        self._lock = threading.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        """A span has ended; background tasks make some of other kinds, which are ignored."""
        own = span.get_span_context()
        if self._inner is None or own is None or span.kind is not SpanKind.SERVER:
            return
        sent = _as_sent(span, own)
        if not own.trace_flags.sampled:
            with self._lock:
                span_id = format_span_id(own.span_id)
                if span_id not in self._wanted:
                    self._put_aside(span_id, sent)
                    return
                del self._wanted[span_id]
        self._inner.on_end(sent)

    def keep(self, span_id: str) -> None:
        """Export a span that was not drawn, now or when it ends."""
        if self._inner is None:
            return
        with self._lock:
            if span_id not in self._ended:
                while len(self._wanted) >= _ASIDE:
                    del self._wanted[next(iter(self._wanted))]
                self._wanted[span_id] = None
                return
            span = self._take(span_id)
        self._inner.on_end(span)

    def _put_aside(self, span_id: str, span: ReadableSpan) -> None:
        size = _SPAN_BYTES + sum(_text_bytes(value) for value in (span.attributes or {}).values())
        while self._ended and (len(self._ended) >= _ASIDE or self._bytes + size > _ASIDE_BYTES):
            self._take(next(iter(self._ended)))
        self._ended[span_id] = span, size
        self._bytes += size

    def _take(self, span_id: str) -> ReadableSpan:
        span, size = self._ended.pop(span_id)
        self._bytes -= size
        return span


def _text_bytes(value: Any) -> int:
    return 64 + len(value) if isinstance(value, str) else sum(map(_text_bytes, value)) if _is_list(value) else 0


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _as_sent(span: ReadableSpan, own: SpanContext) -> ReadableSpan:
    """The span with the attributes that may leave the process, bounded, and sampled."""
    context = SpanContext(own.trace_id, own.span_id, False, TraceFlags(TraceFlags.SAMPLED), own.trace_state)
    return ReadableSpan(
        name=cut(span.name),
        context=context,
        parent=span.parent,
        resource=span.resource,
        attributes=_kept(span.attributes or {}),
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _kept(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that describe the HTTP exchange. Names and values of captured headers come from the client."""
    found: dict[str, Any] = {}
    room = _MAX_HEADERS
    for name, value in attributes.items():
        if not name.startswith(_KEPT):
            continue
        if name.startswith(_HEADER) and name != _REQUEST_ID:
            room -= 1
            if room < 0:
                continue
        found[cut(name)] = _cut(value)
    return found


def _cut(value: Any) -> Any:
    if _is_list(value):
        return tuple(_cut(one) for one in value[:_MAX_VALUES])
    return cut(value) if isinstance(value, str) else value
