"""A span record as OTLP bytes, for new spans and for those sent again out of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.trace import SpanContext

from corevital_otel import conventions as names
from corevital_otel.otlp.encoding import EncodedItem, Group, SpanDraft, encode, event, series_events
from corevital_otel.sampling import context_of
from corevital_otel.settings import Backend
from corevital_otel.spans.attributes import evaluation_of
from corevital_otel.spans.backends import attributes_for
from corevital_otel.spans.record import SpanRecord


def encode_record(
    record: SpanRecord, group: Group, limits: SpanLimits, backends: Sequence[Backend], *, with_series: bool
) -> EncodedItem:
    """Encode a span: its attributes, the risk as an evaluation event, and its series as events.

    Args:
        record: the span.
        group: its resource and scope.
        limits: those of the ``OTEL_*`` variables.
        backends: those that get additional attributes.
        with_series: False: the series' events are left out, and counted in the span.

    Raises:
        Exception: OTLP cannot carry it.
    """
    end_ns = max(record.start_ns, record.end_ns)
    events = [event(names.EVALUATION_EVENT, end_ns, evaluation_of(record.attributes), limits)]
    dropped = 0
    if record.series is not None and with_series:
        events += series_events(record.series, end_ns, limits)
    elif record.series is not None:
        dropped = -(-len(record.series) // names.SERIES_EVENT_TOKENS)
    draft = SpanDraft(
        name=record.name,
        trace_id=int(record.ids.trace_id, 16),
        span_id=int(record.ids.span_id, 16),
        parent=record.parent,
        attributes={**_sent(record.attributes), **record.content, **attributes_for(backends, record.attributes)},
        start_ns=record.start_ns,
        end_ns=end_ns,
        events=events,
        dropped_events=dropped,
        error=record.error,
        link=_batch(record.attributes.get(names.BATCH)),
    )
    return encode(draft, group, limits)


def _sent(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without those that are for the store alone."""
    if names.RISK_SEGMENT not in attributes:
        return attributes
    return {name: value for name, value in attributes.items() if not name.startswith(names.ASSESSED_PREFIX)}


def _batch(traceparent: object) -> SpanContext | None:
    """The engine's span of the batch that a sequence was in. It is not the parent: others are in it too."""
    if not isinstance(traceparent, str):
        return None
    return trace.get_current_span(context_of({"traceparent": traceparent})).get_span_context()
