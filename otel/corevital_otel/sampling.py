"""Which requests are kept, and which of those are exported.

Every request is measured, except one with ``corevital_sample=0``, so that one that goes wrong can be kept at any rate.
At admission a request is drawn or not: by its own ``corevital_sample=1``, else by its caller's sampled flag, else by
the rate: ``COREVITAL_SAMPLE_RATE``, or that of the sampler (:mod:`corevital_otel.otlp.sampler`). At its end it is kept
if it was drawn, or is at high risk, or has a flag up (other than ``traffic_shifted`` and
``template_detected``), or the engine failed. A caller
whose trace is not sampled gets no span in it; the store still keeps the request as the rate draws it.

The samplers ``always_on``, ``always_off`` and ``traceidratio`` ignore a caller's flag: the rate alone draws, and every
request that is kept has a span.

Truncation is such a flag: where every answer is cut at its length limit, every request is kept. A first leg of
disaggregated serving has neither that flag nor a risk.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.span import TraceState

from corevital.frames.lifecycle import Admitted, Draw
from corevital_otel.report import Admission, RequestReport

CALLER: Final[ContextVar[Context | None]] = ContextVar("corevital_caller", default=None)
"""The caller's context of the request being served, current or not. It is kept outside OpenTelemetry's context, because
an instrumentation starts a new one."""

_MAX_STATE: Final = 512
"""Characters of a caller's ``tracestate`` that are kept: the least that W3C requires vendors to propagate."""


def bounded_state(state: TraceState) -> TraceState:
    """As many of the first members as fit."""
    if len(state.to_header()) <= _MAX_STATE:
        return state
    kept, left = [], _MAX_STATE
    for key, value in state.items():
        left -= len(key) + len(value) + 2
        if left < 0:
            break
        kept.append((key, value))
    return TraceState(kept)


_W3C: Final = TraceContextTextMapPropagator()


def context_of(trace_headers: Mapping[str, str]) -> Context:
    """An OpenTelemetry context with the caller's span in it, out of text alone; an empty one where that names none.

    Args:
        trace_headers: ``traceparent`` and ``tracestate`` as a frontend passed them on.
    """
    carrier = {name: text for name, text in trace_headers.items() if isinstance(text, str) and text.isprintable()}
    return _W3C.extract(carrier, Context())


class Sampler:
    """Draws requests. All sequences of a request share one draw.

    Args:
        rate: share that is drawn, 0 to 1.
        by_trace_id: where there is a trace its id decides, as in the SDK's ``TraceIdRatioBased``. A client can then
            choose an id that is drawn.
        obeys_caller: a caller's sampled flag overrides the rate.
    """

    def __init__(self, rate: float, *, by_trace_id: bool = False, obeys_caller: bool = True) -> None:
        self.obeys_caller = obeys_caller
        self._rate = rate
        self._bound = TraceIdRatioBased.get_bound_for_rate(rate) if by_trace_id else None
        self._key = secrets.token_bytes(16)  # so that no client can choose an id that is drawn

    def draw(self, identity: str, trace_id: int | None) -> bool:
        """Whether a request is drawn by the rate; the same for the same identity.

        Args:
            identity: of the request, whose sequences share a draw.
            trace_id: of the trace it belongs to; None: it has none yet, so no other service is to agree.
        """
        if self._bound is not None and trace_id is not None:
            return trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
        digest = hashlib.blake2b(identity.encode(errors="replace"), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._rate * 2**64

    def admit(self, request: Admitted, current: Context) -> Admission:
        """What is decided of a request when it is admitted.

        Args:
            request: the sequence.
            current: the OpenTelemetry context in which it is admitted. Only the parent is kept of it: the rest would
                live until the report is written. Where it has none, the parent is the one that the request names.
                An API server that handed the request over has decided already: see :func:`with_draw`.
        """
        if request.draw is not None:
            return Admission(_named(request, request.draw.is_remote), request.draw.drawn, request.draw.exported)
        span = trace.get_current_span(current)
        caller = _parent_of(span)
        if not caller.is_valid:
            caller = _named(request) or caller
        unsampled = self.obeys_caller and caller.is_valid and not caller.trace_flags.sampled
        # an HTTP span of ours that the rate did not draw is recorded and not sampled: no caller forbids its export
        exported = not unsampled or span.is_recording()
        if request.sample is not None:
            drawn = request.sample
        elif self.obeys_caller and caller.is_valid and exported:
            drawn = caller.trace_flags.sampled
        else:
            identity = f"{request.known_id}/{request.arrival_ns}"
            drawn = self.draw(identity, caller.trace_id if caller.is_valid else None)
        return Admission(caller if caller.is_valid else None, drawn, exported)


def with_draw(request: Admitted, admission: Admission) -> Admitted:
    """The request with what was decided of it here, for a hub in another process, and the parent of its span."""
    parent, headers = admission.parent, dict[str, str]()
    if parent is not None:
        _W3C.inject(headers, trace.set_span_in_context(trace.NonRecordingSpan(parent), Context()))
    draw = Draw(drawn=admission.drawn, exported=admission.exported, is_remote=parent is not None and parent.is_remote)
    return replace(request, draw=draw, traceparent=headers.get("traceparent"), tracestate=headers.get("tracestate"))


def _named(request: Admitted, is_remote: bool = True) -> SpanContext | None:
    """The parent that a request names, if it does."""
    if request.traceparent is None:
        return None
    found = context_of({"traceparent": request.traceparent, "tracestate": request.tracestate or ""})
    named = trace.get_current_span(found).get_span_context()
    if not named.is_valid:
        return None
    return _bounded(SpanContext(named.trace_id, named.span_id, is_remote, named.trace_flags, named.trace_state))


def _parent_of(span: trace.Span) -> SpanContext:
    """The current span's context; the caller's where there is no span in between, or none that is ever recorded."""
    parent = span.get_span_context()
    noted = CALLER.get()
    if noted is not None and not span.is_recording():
        caller = trace.get_current_span(noted).get_span_context()
        if caller.is_valid and (not parent.is_valid or parent.trace_id == caller.trace_id):
            parent = caller
    return _bounded(parent)


def _bounded(parent: SpanContext) -> SpanContext:
    state = bounded_state(parent.trace_state)
    return SpanContext(parent.trace_id, parent.span_id, parent.is_remote, parent.trace_flags, state)


def is_kept(report: RequestReport) -> bool:
    """Whether the request gets a span and a row."""
    bad = bool(report.health.loud_flags) or report.outcome.reason == "error"
    return report.admission.drawn or report.risk.level == "high" or bad
