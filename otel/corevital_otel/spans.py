"""One OpenTelemetry span for each report, from a provider of our own.

vLLM sets the *global* provider when its tracing is on, so ours is private. Without an endpoint in the ``OTEL_*``
variables nothing is exported and nothing connects anywhere; spans are made all the same, for their ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id

from corevital_otel import conventions as names
from corevital_otel import environment, sampling
from corevital_otel.attributes import content_attributes, evaluation_of, span_attributes, span_name
from corevital_otel.counters import Counters
from corevital_otel.delivery import SPAN_BYTES, Delivery, Fate
from corevital_otel.destination import Destination, destination, endpoint, is_disabled, protocol
from corevital_otel.encoding import EncodedSpan, SpanDraft, encode, event, group_of, series_events, series_size
from corevital_otel.otlp import ListeningExporter, reading_variables
from corevital_otel.profiles import Profile, attributes_for
from corevital_otel.random_ids import RandomIds
from corevital_otel.report import RequestReport
from corevital_otel.resource import Facts, make_resource
from corevital_otel.waiting import SpanQueue, drop

__all__ = ["SpanEmitter", "SpanIds", "endpoint", "protocol"]


class SpanIds(NamedTuple):
    """Ids of a span, in hex: 32 and 16 digits; the parent's; and whether the span is to be exported."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    exported: bool = False


class SpanEmitter:
    """Makes spans and hands them to the exporter.

    Args:
        counters: takes ``corevital.telemetry.exported`` and ``…dropped``.
        where: the destination; by default what the ``OTEL_*`` variables say.
        profiles: backends that get what they need besides.
        engine: facts of the engine, for the resource.
        fate: hears of the spans of reports by their ids in hex, and whether they were delivered.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a value we cannot follow.
    """

    def __init__(
        self,
        counters: Counters,
        where: Destination | None = None,
        *,
        profiles: Sequence[Profile] = (),
        engine: Facts | None = None,
        fate: Fate = lambda spans, delivered: None,
    ) -> None:
        self._ids = RandomIds()
        self._profiles = profiles
        self._counters = counters
        self._fate = fate
        self._delivery: Delivery | None = None
        self._processor: SpanQueue | None = None
        environment.tidy()
        where = where or destination()
        with reading_variables("TRACES"):
            self._resource = make_resource(engine)
            self._group = group_of(self._resource)
            self._limits = span_limits()
        if where is not None and not is_disabled(os.environ):
            self._delivery = Delivery(ListeningExporter(where), where.endpoint, counters, fate)
            self._processor = SpanQueue(self._delivery, counters, fate)

    @property
    def resource(self) -> Resource:
        """What all spans are of; metrics have the same, for backends join the two by it."""
        return self._resource

    @property
    def processor(self) -> SpanQueue | None:
        """Where spans of other makers go to reach the same endpoint; None without one."""
        return self._processor

    def provider(self, sampler: Sampler, processor: SpanProcessor | None) -> TracerProvider:
        """A provider with our resource and ids, and a sampler and processor of its own."""
        provider = TracerProvider(
            sampler=sampler,
            resource=self._resource,
            shutdown_on_exit=False,
            span_limits=self._limits,
            id_generator=self._ids,
        )
        if processor is not None:
            provider.add_span_processor(processor)
        return provider

    def emit(
        self,
        report: RequestReport,
        made: Callable[[SpanIds], None] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> SpanIds:
        """Make the span of a report. Returns at once; the export happens in the background.

        Args:
            report: what the span shows.
            made: is given its ids before it can have been exported.
            attributes: those of :func:`~corevital_otel.attributes.span_attributes`, where they are made already.
        """
        parent = report.parent if report.parent is not None else Context()  # an empty one: never the current span
        caller = trace.get_current_span(parent).get_span_context()
        trace_id = caller.trace_id if caller.is_valid else self._ids.generate_trace_id()
        span_id = self._ids.generate_span_id()
        queue = self._processor if sampling.is_exported(report) else None
        ids = SpanIds(
            format_trace_id(trace_id),
            format_span_id(span_id),
            format_span_id(caller.span_id) if caller.is_valid else None,
            queue is not None,
        )
        span = None
        if queue is not None:
            found = attributes if attributes is not None else span_attributes(report)
            span = self._encoded(report, found, (trace_id, span_id), caller, queue)
        if made is not None:
            made(ids)
        if span is not None and queue is not None:
            queue.put(span)
        elif queue is not None:
            self._fate([ids.span_id], False)
        return ids

    def _encoded(
        self,
        report: RequestReport,
        attributes: Mapping[str, Any],
        ids: tuple[int, int],
        caller: SpanContext,
        queue: SpanQueue,
    ) -> EncodedSpan | None:
        """The span, without its series where that does not fit; None, and it is counted, where it cannot be sent."""
        end_ns = max(report.outcome.end_ns, report.admitted.arrival_ns)
        try:
            evaluation = event(names.EVALUATION_EVENT, end_ns, evaluation_of(attributes), self._limits)
            draft = SpanDraft(
                name=span_name(report),
                trace_id=ids[0],
                span_id=ids[1],
                parent=caller,
                attributes={**attributes, **content_attributes(report), **attributes_for(self._profiles, attributes)},
                start_ns=report.admitted.arrival_ns,
                end_ns=end_ns,
                events=[evaluation],
                error="the engine reported an error" if report.outcome.reason == "error" else None,
            )
            series_bytes = 0 if report.series is None else series_size(report.series)
            too_large = series_bytes > SPAN_BYTES
            if report.series is not None and (too_large or not queue.room_for(series_bytes)):
                self._counters.add(names.DROPPED, what="series", why="too_large" if too_large else "queue_full")
                draft = replace(draft, dropped_events=-(-len(report.series) // names.SERIES_EVENT_TOKENS))
            elif report.series is not None:
                draft = replace(draft, events=[evaluation, *series_events(report.series, end_ns, self._limits)])
            span = encode(draft, self._group, self._limits)
        except Exception as error:
            drop(self._counters, format_span_id(ids[1]), error)
            return None
        if span.size > SPAN_BYTES:
            drop(self._counters, span.id, span.size)
            return None
        return span

    def shutdown(self, timeout_s: float) -> None:
        """Deliver what is queued, for at most this long. An endpoint that hangs does not hold the process up."""
        if self._processor is not None:
            self._processor.close(timeout_s)


def span_limits(env: Mapping[str, str] = os.environ) -> SpanLimits:
    """The limits that the ``OTEL_*`` variables set; no limit of events by default.

    The SDK's 128 events a span would cut the start off a series of more than 32,768 tokens.
    """
    return SpanLimits() if env.get("OTEL_SPAN_EVENT_COUNT_LIMIT") else SpanLimits(max_events=SpanLimits.UNSET)
