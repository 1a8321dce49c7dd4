"""Spans made anew from the store's rows, with their own ids, so that a backend that has one already knows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.trace import SpanContext, TraceFlags

from corevital.text import printable
from corevital_otel import conventions as names
from corevital_otel.attributes import evaluation_of
from corevital_otel.counters import Counters
from corevital_otel.delivery import SPAN_BYTES, Delivery
from corevital_otel.destination import Destination
from corevital_otel.encoding import EncodedSpan, Group, SpanDraft, encode, event, group_of, series_events, series_size
from corevital_otel.otlp import ListeningExporter, reading_variables
from corevital_otel.profiles import Profile, attributes_for
from corevital_otel.resource import make_resource
from corevital_otel.spans import span_limits
from corevital_otel.store.outbox import UnsentSpan
from corevital_otel.waiting import drop

_PATIENCE_S: Final = 60.0
"""Somebody is waiting for the command to end."""
_REFUSED: Final = 3
"""Batches in a row of which a backend has taken nothing."""
_GROUPS: Final = 256
"""Resources that are kept encoded."""


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
        self._refused = 0
        self._wanted = wanted
        self._exporter = ListeningExporter(where)
        self._counters = Counters()
        self._delivery = Delivery(self._exporter, where.endpoint, self._counters, self._settled, _PATIENCE_S)
        with reading_variables("TRACES"):
            self._unknown = group_of(make_resource())  # of rows that do not say
            self._limits = span_limits()
        self._groups: dict[str, Group] = {}

    @property
    def damaged(self) -> int:
        """Spans so far that cannot be sent, for what their rows hold. They are not among those that were tried."""
        return self._counters.get(names.DROPPED, what="span", why="unencodable") + self._counters.get(
            names.DROPPED, what="span", why="too_large"
        )

    @property
    def hopeless(self) -> bool:
        """Whether it is no use to send more: it is not the spans that the backend refuses, or it has refused many."""
        return self._refused > 0 and (not self._delivery.last.divisible or self._refused >= _REFUSED)

    def send(self, spans: Sequence[UnsentSpan]) -> list[str]:
        """Send them. Returns the ids of those that were taken; why others were not is in the log."""
        self._taken = []
        encoded = [each for span in spans if (each := self._encoded(span)) is not None]
        self._delivery.export(encoded)
        self._refused = self._refused + 1 if encoded and not self._taken else 0
        return self._taken

    def _encoded(self, row: UnsentSpan) -> EncodedSpan | None:
        """The span of a row; None, and it is counted, where the row is damaged."""
        try:
            span = _encoded(row, self._group(row), self._limits, self._wanted)
        except Exception as error:  # anything may be in a damaged row
            drop(self._counters, printable(row.span_id, 64), error)
            return None
        if span.size > SPAN_BYTES:
            drop(self._counters, span.id, span.size)
            return None
        return span

    def _group(self, row: UnsentSpan) -> Group:
        """The resource that a span had when it was made; one object for all of its spans."""
        if row.resource is None:
            return self._unknown
        key = json.dumps(row.resource)
        if key not in self._groups:
            if len(self._groups) >= _GROUPS:
                self._groups.clear()
            self._groups[key] = group_of(Resource(row.resource))
        return self._groups[key]

    def _settled(self, span_ids: Sequence[str], delivered: bool) -> None:
        if delivered:
            self._taken += span_ids

    def close(self) -> None:
        """Let go of the connection."""
        self._exporter.shutdown()


def _encoded(row: UnsentSpan, group: Group, limits: SpanLimits, wanted: Sequence[Profile]) -> EncodedSpan:
    trace_id = int(row.trace_id, 16)
    parent = None
    if row.parent_span_id is not None:
        flags = TraceFlags(TraceFlags.SAMPLED)
        parent = SpanContext(trace_id, int(row.parent_span_id, 16), is_remote=True, trace_flags=flags)
    events = [event(names.EVALUATION_EVENT, row.end_ns, evaluation_of(row.attributes), limits)]
    dropped = 0
    if row.series is not None and series_size(row.series) <= SPAN_BYTES:
        events += series_events(row.series, row.end_ns, limits)
    elif row.series is not None:
        dropped = -(-len(row.series) // names.SERIES_EVENT_TOKENS)
    draft = SpanDraft(
        name=f"{row.attributes.get(names.OPERATION_NAME, '')} {row.model}",
        trace_id=trace_id,
        span_id=int(row.span_id, 16),
        parent=parent,
        attributes={**row.attributes, **attributes_for(wanted, row.attributes)},
        start_ns=row.start_ns,
        end_ns=row.end_ns,
        events=events,
        dropped_events=dropped,
        error="the engine reported an error" if row.finish_reason == "error" else None,
    )
    return encode(draft, group, limits)
