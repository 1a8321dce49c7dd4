"""A stand-in for the Collector's ``clickhouse`` exporter: its table, and a span as a row of it.

Written from the exporter's documentation (contrib 0.157): column names and types, values as text, lists as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.harness.collector import Span

TABLE = """
CREATE TABLE otel.otel_traces (
    Timestamp DateTime64(9) CODEC(Delta, ZSTD(1)), TraceId String CODEC(ZSTD(1)), SpanId String CODEC(ZSTD(1)),
    ParentSpanId String CODEC(ZSTD(1)), TraceState String CODEC(ZSTD(1)),
    SpanName LowCardinality(String) CODEC(ZSTD(1)), SpanKind LowCardinality(String) CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)), ScopeName String CODEC(ZSTD(1)),
    ScopeVersion String CODEC(ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    SpanAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)), Duration UInt64 CODEC(ZSTD(1)),
    StatusCode LowCardinality(String) CODEC(ZSTD(1)), StatusMessage String CODEC(ZSTD(1)),
    Events Nested (
        Timestamp DateTime64(9), Name LowCardinality(String), Attributes Map(LowCardinality(String), String)
    ) CODEC(ZSTD(1)),
    Links Nested (
        TraceId String, SpanId String, TraceState String, Attributes Map(LowCardinality(String), String)
    ) CODEC(ZSTD(1))
) ENGINE = MergeTree PARTITION BY toDate(Timestamp) ORDER BY (ServiceName, SpanName, toDateTime(Timestamp), Timestamp)
"""
KINDS = ("Unspecified", "Internal", "Server", "Client", "Producer", "Consumer")
STATUSES = ("Unset", "Ok", "Error")


def text(value: Any) -> str:
    """A value of an attribute as the exporter's maps have it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return json.dumps(value, separators=(",", ":"))
    return repr(value)


def attributes(found: Mapping[str, Any]) -> dict[str, str]:
    """A map column."""
    return {name: text(value) for name, value in found.items()}


def row(span: Span) -> dict[str, Any]:
    """A span as a row, by column."""
    events = [(name, attributes(values)) for name, values in span.events]
    return {
        "Timestamp": f"{span.start_ns // 10**9}.{span.start_ns % 10**9:09d}",
        "TraceId": span.trace_id,
        "SpanId": span.span_id,
        "ParentSpanId": span.parent_id,
        "TraceState": span.trace_state,
        "SpanName": span.name,
        "SpanKind": KINDS[span.kind],
        "ServiceName": span.resource["service.name"],
        "ScopeName": span.scope,
        "ResourceAttributes": attributes(span.resource),
        "SpanAttributes": attributes(span.attributes),
        "Duration": span.end_ns - span.start_ns,
        "StatusCode": STATUSES[span.status],
        "Events.Timestamp": [f"{span.end_ns // 10**9}" for _ in events],  # the harness keeps no event's time
        "Events.Name": [name for name, _ in events],
        "Events.Attributes": [values for _, values in events],
    }
