"""One OpenTelemetry span for each report, from a provider of our own.

vLLM sets the *global* provider when its tracing is on, so ours is private. Without an endpoint in the ``OTEL_*``
variables nothing is exported and nothing connects anywhere; spans are made all the same, for their ids.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import SpanKind, Status, StatusCode, format_span_id, format_trace_id

from corevital_otel import __version__, environment, sampling
from corevital_otel import conventions as names
from corevital_otel.attributes import content_attributes, evaluation_of, series_events, span_attributes, span_name
from corevital_otel.counters import Counters
from corevital_otel.delivery import BoundedProcessor, CountingExporter, Fate
from corevital_otel.destination import Destination, destination, endpoint, protocol
from corevital_otel.errors import SettingsError
from corevital_otel.otlp import ListeningExporter
from corevital_otel.profiles import Profile, attributes_for
from corevital_otel.report import RequestReport
from corevital_otel.resource import Facts, make_resource

__all__ = ["SpanEmitter", "SpanIds", "endpoint", "protocol"]


class SpanIds(NamedTuple):
    """Ids of a span, in hex: 32 and 16 digits; the parent's; and whether the span is to be exported."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    exported: bool = False


class _Ids(IdGenerator):
    """Ids that neither use up nor follow the process's random numbers, which a script or an engine may have seeded."""

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or self.generate_span_id()

    def generate_trace_id(self) -> int:
        return secrets.randbits(128) or self.generate_trace_id()


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
        self._ids = _Ids()
        self._profiles = profiles
        self._exporter: CountingExporter | None = None
        self._processor: BoundedProcessor | None = None
        self._shutdown: Callable[[], None] = _nothing
        environment.tidy()
        try:
            where = where or destination()
            self._resource = make_resource(engine)
            if where is not None:
                self._exporter = CountingExporter(ListeningExporter(where), where.endpoint, counters, fate)
                self._processor = BoundedProcessor(self._exporter)
                self._shutdown = self._processor.shutdown
            self._tracer = self.provider(ALWAYS_ON, self._processor).get_tracer("corevital", __version__)
        except SettingsError:
            raise
        except Exception as error:  # the SDK's parts raise what they like; none of their values is ours to list
            cause = " ".join(str(error).split())
            raise SettingsError(f"an OTEL_* variable has a value that OpenTelemetry refuses: {cause}") from error

    @property
    def resource(self) -> Resource:
        """What all spans are of; metrics have the same, for backends join the two by it."""
        return self._resource

    @property
    def processor(self) -> BoundedProcessor | None:
        """Where spans of other makers go to reach the same endpoint; None without one."""
        return self._processor

    def provider(self, sampler: Sampler, processor: SpanProcessor | None) -> TracerProvider:
        """A provider with our resource and ids, and a sampler and processor of its own."""
        provider = TracerProvider(
            sampler=sampler,
            resource=self._resource,
            shutdown_on_exit=False,
            span_limits=_limits(),
            id_generator=self._ids,
        )
        if processor is not None:
            provider.add_span_processor(processor)
        return provider

    def emit(self, report: RequestReport, made: Callable[[SpanIds], None] | None = None) -> SpanIds:
        """Make the span of a report. Returns at once; the export happens in the background.

        Args:
            report: what the span tells.
            made: hears of its ids before it can have been exported.
        """
        parent = report.parent if report.parent is not None else Context()  # an empty one: never the current span
        if not sampling.is_exported(report):
            ids = self._unexported(parent)
            if made is not None:
                made(ids)
            return ids
        attributes = span_attributes(report)
        span = self._tracer.start_span(
            span_name(report),
            context=parent,
            kind=SpanKind.INTERNAL,
            attributes={**attributes, **content_attributes(report), **attributes_for(self._profiles, attributes)},
            start_time=report.admitted.arrival_ns,
        )
        end_ns = max(report.outcome.end_ns, report.admitted.arrival_ns)
        span.add_event(names.EVALUATION_EVENT, evaluation_of(attributes), timestamp=end_ns)
        if report.series is not None:
            for event in series_events(report.series):
                span.add_event(names.SERIES_EVENT, event, timestamp=end_ns)
        if report.outcome.reason == "error":
            span.set_status(Status(StatusCode.ERROR, "the engine reported an error"))
        if span.is_recording():
            context = span.get_span_context()
            ids = SpanIds(
                format_trace_id(context.trace_id),
                format_span_id(context.span_id),
                _parent_id(parent),
                self._exporter is not None,
            )
        else:  # OTEL_SDK_DISABLED: there is no span but the caller's, if any, and the store wants ids that are unique
            ids = self._unexported(parent)
        if made is not None:
            made(ids)
        span.end(end_ns)
        return ids

    def _unexported(self, parent: Context) -> SpanIds:
        caller = trace.get_current_span(parent).get_span_context()
        trace_id = caller.trace_id if caller.is_valid else self._ids.generate_trace_id()
        return SpanIds(format_trace_id(trace_id), format_span_id(self._ids.generate_span_id()), _parent_id(parent))

    def shutdown(self, timeout_s: float) -> None:
        """Deliver what is queued, for at most this long. An endpoint that hangs does not hold the process up."""
        if self._exporter is not None:
            self._exporter.hurry()
        thread = threading.Thread(target=self._shutdown, name="corevital-shutdown", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if self._exporter is not None:
            self._exporter.give_up()


def _nothing() -> None:
    pass


def _parent_id(parent: Context) -> str | None:
    caller = trace.get_current_span(parent).get_span_context()
    return format_span_id(caller.span_id) if caller.is_valid else None


def _limits(env: Mapping[str, str] = os.environ) -> SpanLimits:
    # the SDK's 128 events a span would cut the start off a series of more than 32,768 tokens
    return SpanLimits() if env.get("OTEL_SPAN_EVENT_COUNT_LIMIT") else SpanLimits(max_events=SpanLimits.UNSET)
