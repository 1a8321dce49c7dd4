"""Spans made anew from the store's rows, with their own ids, so that a backend that has one already knows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from corevital_otel import __version__
from corevital_otel import conventions as names
from corevital_otel.attributes import evaluation_of, series_events
from corevital_otel.counters import Counters
from corevital_otel.delivery import CountingExporter
from corevital_otel.destination import Destination
from corevital_otel.errors import SettingsError
from corevital_otel.otlp import ListeningExporter
from corevital_otel.profiles import Profile, attributes_for
from corevital_otel.resource import make_resource
from corevital_otel.store.outbox import UnsentSpan

_PATIENCE_S: Final = 60.0
"""Somebody is waiting for the command to end."""


class Resender:
    """Sends spans out of the store.

    Args:
        where: to whom.
        wanted: backends that get what they need besides.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a value that the exporter refuses.
    """

    def __init__(self, where: Destination, wanted: Sequence[Profile]) -> None:
        self._taken: list[str] = []
        self._wanted = wanted
        try:
            listening = ListeningExporter(where)
        except Exception as error:  # the SDK's parts raise what they like
            cause = " ".join(str(error).split())
            raise SettingsError(f"an OTEL_* variable has a value that OpenTelemetry refuses: {cause}") from error
        self._exporter = CountingExporter(listening, where.endpoint, Counters(), self._settled, _PATIENCE_S)
        self._unknown = make_resource()  # of rows that do not say
        self._resources: dict[str, Resource] = {}

    def send(self, spans: Sequence[UnsentSpan]) -> list[str]:
        """Send them. Returns the ids of those that were taken; why others were not is in the log."""
        self._taken = []
        self._exporter.export([_span(span, self._resource(span), self._wanted) for span in spans])
        return self._taken

    def _resource(self, span: UnsentSpan) -> Resource:
        """The resource that a span had when it was made; one object for all of its spans, which OTLP then groups."""
        if span.resource is None:
            return self._unknown
        key = json.dumps(span.resource)
        return self._resources.setdefault(key, Resource(span.resource))

    def _settled(self, span_ids: Sequence[str], delivered: bool) -> None:
        if delivered:
            self._taken += span_ids

    def close(self) -> None:
        """Let go of the connection."""
        self._exporter.shutdown()


def _span(row: UnsentSpan, resource: Resource, wanted: Sequence[Profile]) -> ReadableSpan:
    trace_id, flags = int(row.trace_id, 16), TraceFlags(TraceFlags.SAMPLED)
    parent = None
    if row.parent_span_id is not None:
        parent = SpanContext(trace_id, int(row.parent_span_id, 16), is_remote=True, trace_flags=flags)
    events = [Event(names.EVALUATION_EVENT, evaluation_of(row.attributes), row.end_ns)]
    if row.series is not None:
        events += [Event(names.SERIES_EVENT, attributes, row.end_ns) for attributes in series_events(row.series)]
    failed = row.finish_reason == "error"
    return ReadableSpan(
        name=f"{row.attributes.get(names.OPERATION_NAME, '')} {row.model}",
        context=SpanContext(trace_id, int(row.span_id, 16), is_remote=False, trace_flags=flags),
        parent=parent,
        resource=resource,
        attributes={**row.attributes, **attributes_for(wanted, row.attributes)},
        events=events,
        kind=SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR, "the engine reported an error") if failed else Status(),
        start_time=row.start_ns,
        end_time=row.end_ns,
        instrumentation_scope=InstrumentationScope("corevital", __version__),
    )
