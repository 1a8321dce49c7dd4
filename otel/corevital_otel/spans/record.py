"""The span of a report, built once: the store, the exporter, exemplars and resending all take this record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from opentelemetry.trace import SpanContext

from corevital.text import cut
from corevital_otel import conventions as names
from corevital_otel.report import RequestReport, Series
from corevital_otel.spans.attributes import content_attributes, span_attributes

ENGINE_ERROR = "the engine reported an error"


class SpanIds(NamedTuple):
    """Ids of a span, in hex: 32 and 16 digits; the parent's; and whether the span is to be exported."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    exported: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRecord:
    """A span before it is encoded for the wire or written to the disk.

    Attributes:
        ids: its ids, its parent's, and whether it is exported.
        name: ``{operation} {model}``.
        request_id: by which the store finds it: the client's, or the engine's where that is not known; empty for a
            span that is in the store already.
        start_ns, end_ns: wall clock, nanoseconds since the epoch; the end may be before the start.
        attributes: those of the conventions, for the store and for the exporter. Nobody changes them.
        content: the request's text, for the exporter alone.
        flags: the health flags that are up.
        series: per-token values, which become events; None where they are not kept.
        error: the status's description; None where there is no error.
        parent: the caller's span; None where the span is a root.
    """

    ids: SpanIds
    name: str
    request_id: str = ""
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    content: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    series: Series | None = None
    error: str | None = None
    parent: SpanContext | None = None


def record_of(report: RequestReport, ids: SpanIds) -> SpanRecord:
    """The record of a report, under these ids."""
    attributes = span_attributes(report)
    return SpanRecord(
        ids=ids,
        name=f"{attributes[names.OPERATION_NAME]} {attributes[names.REQUEST_MODEL]}",
        request_id=cut(report.admitted.known_id),
        start_ns=report.admitted.arrival_ns,
        end_ns=report.outcome.end_ns,
        attributes=attributes,
        content=content_attributes(report) if ids.exported else {},
        flags=report.health.flags,
        series=report.series,
        error=ENGINE_ERROR if report.outcome.reason == "error" else None,
        parent=report.admission.parent,
    )
