"""The span of a request over HTTP on its way from an API server to a hub process, which exports it or sets it aside."""

from __future__ import annotations

from dataclasses import dataclass, field

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState


@dataclass(frozen=True, slots=True, kw_only=True)
class PostedSpan:
    """An ended server span.

    Attributes:
        name: its name.
        trace_id, span_id: unsigned, 128 and 64 bits.
        sampled: it was drawn.
        start_ns, end_ns: wall clock, nanoseconds since the epoch.
        parent_id: of the caller's span; None: it has none.
        parent_is_remote: that span is another process's.
        tracestate: as in W3C's header.
        error: its status is an error.
        attributes: those that may leave the process.
        scope, scope_version, schema_url: of the instrumentation.
    """

    name: str
    trace_id: int
    span_id: int
    sampled: bool
    start_ns: int
    end_ns: int
    parent_id: int | None = None
    parent_is_remote: bool = True
    tracestate: str = ""
    error: bool = False
    attributes: dict[str, bool | int | float | str | tuple[str, ...]] = field(default_factory=dict)
    scope: str = ""
    scope_version: str | None = None
    schema_url: str | None = None


def write(span: ReadableSpan, own: SpanContext) -> PostedSpan:
    """A span as it is sent.

    Args:
        span: with attributes that may leave the process.
        own: its context.
    """
    parent, scope = span.parent, span.instrumentation_scope
    return PostedSpan(
        name=span.name,
        trace_id=own.trace_id,
        span_id=own.span_id,
        sampled=own.trace_flags.sampled,
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        parent_id=None if parent is None else parent.span_id,
        parent_is_remote=parent is None or parent.is_remote,
        tracestate=own.trace_state.to_header(),
        error=span.status.status_code is StatusCode.ERROR,
        attributes=dict(span.attributes or {}),  # type: ignore[arg-type]
        scope="" if scope is None else scope.name,
        scope_version=None if scope is None else scope.version,
        schema_url=None if scope is None else scope.schema_url,
    )


def read(sent: PostedSpan, resource: Resource) -> ReadableSpan:
    """The span as its process had it, with this resource.

    Raises:
        ValueError: an id or a time is out of range.
    """
    for number, bits in ((sent.trace_id, 128), (sent.span_id, 64), (sent.parent_id or 1, 64)):
        if not 0 < number < 1 << bits:
            raise ValueError(number)
    for time_ns in (sent.start_ns, sent.end_ns):  # in any order: the clock may have been set back
        if not 0 <= time_ns < 1 << 63:
            raise ValueError(time_ns)
    flags = TraceFlags(TraceFlags.SAMPLED if sent.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([sent.tracestate])
    parent = sent.parent_id and SpanContext(sent.trace_id, sent.parent_id, sent.parent_is_remote, flags, state)
    return ReadableSpan(
        name=sent.name,
        context=SpanContext(sent.trace_id, sent.span_id, False, flags, state),
        parent=parent or None,
        resource=resource,
        attributes=sent.attributes,
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR if sent.error else StatusCode.UNSET),
        start_time=sent.start_ns,
        end_time=sent.end_ns,
        instrumentation_scope=InstrumentationScope(sent.scope, sent.scope_version, sent.schema_url),
    )
