"""Spans rebuilt from the store's rows, with their original ids, so that a backend recognises one it already has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, TraceFlags

from corevital.text import cut, printable
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.otlp.answers import Verdict
from corevital_otel.otlp.delivery import SPAN_BYTES, Delivery
from corevital_otel.otlp.destination import Destination
from corevital_otel.otlp.encoding import EncodedItem, Group, group_of, series_size
from corevital_otel.otlp.exporter import ListeningExporter, reading_variables
from corevital_otel.otlp.kinds import SPANS, Kind
from corevital_otel.otlp.queue import drop
from corevital_otel.otlp.resource import make_resource
from corevital_otel.settings import Backend
from corevital_otel.spans.emitter import span_limits
from corevital_otel.spans.encoded import encode_record
from corevital_otel.spans.record import ENGINE_ERROR, SpanIds, SpanRecord
from corevital_otel.store.outbox import UnsentSpan

_PATIENCE_S: Final = 60.0
"""A user is waiting for the command."""
_REFUSED: Final = 3
"""Successive batches of which a backend accepted nothing."""
_GROUPS: Final = 256
"""Resources that are kept encoded."""


class Resender:
    """Sends spans out of the store.

    Args:
        where: the destination.
        backends: those that get additional attributes.
        patience_s: how long to wait for a backend that is down.
        kind: the texts of the log.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a value that the exporter refuses.

    Attributes:
        counters: counts deliveries and losses of this one alone.
        unfit: rows of the last call that cannot be sent because of their content. They were not tried.
    """

    def __init__(
        self, where: Destination, backends: Sequence[Backend], patience_s: float = _PATIENCE_S, kind: Kind = SPANS
    ) -> None:
        self._taken: list[str] = []
        self.unfit: list[int] = []
        self._refused = 0
        self._backends = backends
        self._exporter = ListeningExporter(where)
        self.counters = Counters()
        self._delivery = Delivery(self._exporter, where.endpoint, self.counters, self._note_fate, patience_s, kind)
        self._groups: dict[str, Group] = {}
        with reading_variables("TRACES"):
            self._group_of(None)  # raises where a variable is wrong
            self._limits = span_limits()

    @property
    def damaged(self) -> int:
        """Spans so far that cannot be sent because of their rows' content. They were not tried."""
        return self.counters.lost(Loss.SPAN_UNENCODABLE) + self.counters.lost(Loss.SPAN_TOO_LARGE)

    @property
    def last(self) -> Verdict:
        """On the last request."""
        return self._delivery.last

    @property
    def hopeless(self) -> bool:
        """Whether sending more is useless: the backend refuses requests whatever the spans, or has refused many."""
        return self._refused > 0 and (not self._delivery.last.divisible or self._refused >= _REFUSED)

    def send(self, spans: Sequence[UnsentSpan]) -> list[str]:
        """Send them. Returns the ids of those accepted; the log has the reason for others."""
        self._taken, self.unfit = [], []
        encoded = [each for span in spans if (each := self._encoded(span)) is not None]
        self._delivery.export(encoded)
        self._refused = self._refused + 1 if encoded and not self._taken else 0
        return self._taken

    def _encoded(self, row: UnsentSpan) -> EncodedItem | None:
        """The span of a row; None, and it is counted, where the row is damaged."""
        try:
            record = _record(row)
            fits = record.series is None or series_size(record.series) <= SPAN_BYTES
            span = encode_record(record, self._group(row), self._limits, self._backends, with_series=fits)
        except Exception as error:  # a damaged row may hold anything
            drop(self.counters, printable(row.span_id, 64), error)
            self.unfit.append(row.row)
            return None
        if span.size > SPAN_BYTES:
            drop(self.counters, span.id, span.size)
            self.unfit.append(row.row)
            return None
        return span

    def _group(self, row: UnsentSpan) -> Group:
        """The resource that a span had when it was made; one object for all of its spans."""
        return self._group_of(row.resource, row.attributes.get(names.PROVIDER_NAME))

    def _group_of(self, resource: Mapping[str, Any] | None, engine: object = None) -> Group:
        """Of a resource; where a row has none, what its engine's server would have now."""
        key = json.dumps([resource, engine])
        if key not in self._groups:
            if len(self._groups) >= _GROUPS:
                self._groups.clear()
            named = {"engine.name": cut(engine)} if isinstance(engine, str) and resource is None else None
            self._groups[key] = group_of(make_resource(named) if resource is None else Resource(resource))
        return self._groups[key]

    def _note_fate(self, span_ids: Sequence[str], delivered: bool) -> None:
        if delivered:
            self._taken += span_ids

    def hurry(self) -> None:
        """Try each request once more at most, without pauses."""
        self._delivery.hurry()

    def close(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


def _record(row: UnsentSpan) -> SpanRecord:
    """The span that a row was written from, its content excepted: the store never has it."""
    parent = None
    if row.parent_span_id is not None:
        flags = TraceFlags(TraceFlags.SAMPLED)
        parent = SpanContext(int(row.trace_id, 16), int(row.parent_span_id, 16), is_remote=True, trace_flags=flags)
    return SpanRecord(
        ids=SpanIds(row.trace_id, row.span_id, row.parent_span_id, exported=True),
        name=f"{row.attributes.get(names.OPERATION_NAME, '')} {row.model}",
        start_ns=row.start_ns,
        end_ns=row.end_ns,
        attributes=row.attributes,
        series=row.series,
        error=ENGINE_ERROR if row.finish_reason == "error" else None,
        parent=parent,
    )
