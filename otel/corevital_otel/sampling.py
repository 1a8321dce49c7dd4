"""Which requests are kept, and which of those are exported.

Every request is measured, unless it says ``corevital_sample=0`` itself: only so can one that goes wrong be kept
whatever the rate is. At admission a request is drawn, or not: by its own ``corevital_sample=1``, else by its caller's
sampled flag, else by ``COREVITAL_SAMPLE_RATE``. At its end it is kept if it was drawn, or is at high risk, or has a
fault. A caller that has said of its trace that it is not sampled gets no span in it; the store keeps the request all
the same, as the rate draws it.

Truncation is such a fault: where every answer is cut at its length limit, every request is kept.
"""

from __future__ import annotations

import hashlib
import secrets
from contextvars import ContextVar
from typing import Final

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext
from opentelemetry.trace.span import TraceState

from corevital.frames.lifecycle import Admitted
from corevital_otel.report import RequestReport

_UNDRAWN: Final = context.create_key("corevital-undrawn")
_UNEXPORTED: Final = context.create_key("corevital-unexported")

CALLER: Final[ContextVar[Context | None]] = ContextVar("corevital_caller", default=None)
"""The caller's context of the request being served, which may be current or not. It is no value in OpenTelemetry's
context: an instrumentation begins a new one."""

_MAX_STATE: Final = 512
"""Characters of a caller's ``tracestate`` that are kept: what W3C asks vendors to propagate at least."""


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


class Sampler:
    """Draws requests. All sequences of a request share one draw.

    Args:
        rate: share that is drawn, 0 to 1.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._key = secrets.token_bytes(16)  # nobody outside can know which ids are drawn

    def draw(self, identity: str) -> bool:
        """Whether the request of this identity is drawn by the rate; the same for the same identity."""
        digest = hashlib.blake2b(identity.encode(errors="replace"), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._rate * 2**64

    def admit(self, request: Admitted, current: Context) -> Context | None:
        """The parent context of an admitted request's span, which carries the draw; None is a root that was drawn.

        Args:
            request: the sequence.
            current: the OpenTelemetry context in which it is admitted.
        """
        span = trace.get_current_span(current)
        caller = _parent_of(span)
        unsampled = caller.is_valid and not caller.trace_flags.sampled
        # an HTTP span of ours that the rate did not draw is recorded and not sampled: no caller has forbidden it
        exported = not unsampled or span.is_recording()
        if request.sample is not None:
            drawn = request.sample
        elif caller.is_valid and exported:
            drawn = caller.trace_flags.sampled
        else:
            drawn = self.draw(f"{request.request_id}/{request.arrival_ns}")
        if not caller.is_valid and drawn:
            return None
        # nothing else of the context: it would be kept until the report is written, with all that is in it
        parent = trace.set_span_in_context(NonRecordingSpan(caller), Context()) if caller.is_valid else Context()
        parent = parent if drawn else context.set_value(_UNDRAWN, True, parent)
        return parent if exported else context.set_value(_UNEXPORTED, True, parent)


def _parent_of(span: trace.Span) -> SpanContext:
    """The current span's context; the caller's where there is no span in between, or none that is ever recorded."""
    parent = span.get_span_context()
    noted = CALLER.get()
    if noted is not None and not span.is_recording():
        caller = trace.get_current_span(noted).get_span_context()
        if caller.is_valid and (not parent.is_valid or parent.trace_id == caller.trace_id):
            parent = caller
    state = bounded_state(parent.trace_state)
    return SpanContext(parent.trace_id, parent.span_id, parent.is_remote, parent.trace_flags, state)


def is_drawn(report: RequestReport) -> bool:
    """Whether the request was drawn at its admission."""
    return report.parent is None or not context.get_value(_UNDRAWN, report.parent)


def is_exported(report: RequestReport) -> bool:
    """Whether its caller lets its span be exported."""
    return report.parent is None or not context.get_value(_UNEXPORTED, report.parent)


def is_kept(report: RequestReport) -> bool:
    """Whether there is to be a span and a row of it."""
    faulty = any(flag != "traffic_shifted" for flag in report.health.flags) or report.outcome.reason == "error"
    return is_drawn(report) or report.risk.level == "high" or faulty
