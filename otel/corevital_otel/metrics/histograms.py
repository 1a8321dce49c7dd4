"""Histograms with fixed buckets, summed here and passed to the SDK's exporter as data points.

Recording into a histogram of the SDK takes some ten microseconds, and each sequence has ten: more than the rest of
its report. Only the place of the sums differs from the SDK: bounds, temporality and exemplars are the same.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
)

from corevital_otel.metrics.instruments import Instrument

_FILTERS: Final = ("trace_based", "always_on", "always_off")
"""Values of ``OTEL_METRICS_EXEMPLAR_FILTER``; the first is its default."""

Labels = tuple[tuple[str, str], ...]


class _Point:
    """The sums of one set of labels. Its bucket ``i`` takes values up to the bound ``i``, the last one all others."""

    __slots__ = ("bounds", "count", "counts", "exemplars", "highest", "lowest", "start_ns", "total")

    def __init__(self, bounds: tuple[float, ...], start_ns: int) -> None:
        self.bounds = bounds
        self.start_ns = start_ns
        self.counts = [0] * (len(bounds) + 1)
        self.count, self.total = 0, 0.0
        self.lowest, self.highest = float("inf"), float("-inf")
        self.exemplars: dict[int, tuple[float, int, Context]] = {}  # bucket -> the last one

    def data(self, labels: Labels, now_ns: int) -> HistogramDataPoint:
        exemplars = []
        for value, time_ns, context in self.exemplars.values():
            span = trace.get_current_span(context).get_span_context()
            ids = (span.span_id, span.trace_id) if span.is_valid else (None, None)
            exemplars.append(Exemplar({}, value, time_ns, *ids))
        return HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=self.start_ns,
            time_unix_nano=now_ns,
            count=self.count,
            sum=self.total,
            bucket_counts=tuple(self.counts),
            explicit_bounds=self.bounds,
            min=self.lowest,
            max=self.highest,
            exemplars=exemplars,
        )


class Histograms:
    """All histograms of one exporter. One thread records, another exports.

    Args:
        temporality: with ``DELTA``, sums restart after each export.
        exemplar_filter: ``OTEL_METRICS_EXEMPLAR_FILTER``; empty: its default.
    """

    def __init__(self, temporality: AggregationTemporality, exemplar_filter: str = "") -> None:
        self._temporality = temporality
        chosen = exemplar_filter.strip().lower()
        self._filter = chosen if chosen in _FILTERS else _FILTERS[0]
        self._points: dict[str, tuple[Instrument, dict[Labels, _Point]]] = {}
        self._judged: tuple[Context | None, bool] = (None, False)  # one report's measurements share a context
        self._start_ns = time.time_ns()
        self._lock = threading.Lock()

    def record(self, instrument: Instrument, value: float, labels: Mapping[str, str], context: Context) -> None:
        """Take a finite value, at least 0, in."""
        key = tuple(labels.items())
        with self._lock:
            found = self._points.get(instrument.name)
            if found is None:
                found = self._points[instrument.name] = instrument, {}
            points = found[1]
            point = points.get(key)
            if point is None:
                point = points[key] = _Point(instrument.buckets, self._start_ns)
            bucket = bisect_left(point.bounds, value)
            point.counts[bucket] += 1
            point.count += 1
            point.total += value
            point.lowest = min(point.lowest, value)
            point.highest = max(point.highest, value)
            if self._judged[0] is not context:
                self._judged = context, self._is_exemplar(context)
            if self._judged[1]:
                point.exemplars[bucket] = value, time.time_ns(), context

    def _is_exemplar(self, context: Context) -> bool:
        if self._filter != "trace_based":
            return self._filter == "always_on"
        return trace.get_current_span(context).get_span_context().trace_flags.sampled

    def added_to(self, metrics: MetricsData) -> MetricsData:
        """The SDK's metrics, with ours added to their first scope."""
        ours = self._collect()
        if not ours or not metrics.resource_metrics:
            return metrics
        resource, *others = metrics.resource_metrics
        scope, *more = resource.scope_metrics
        scope = replace(scope, metrics=[*scope.metrics, *ours])
        return replace(metrics, resource_metrics=[replace(resource, scope_metrics=[scope, *more]), *others])

    def _collect(self) -> list[Metric]:
        now_ns = time.time_ns()
        with self._lock:
            metrics = [
                Metric(
                    name=instrument.name,
                    description=instrument.text,
                    unit=instrument.unit,
                    data=Histogram([point.data(labels, now_ns) for labels, point in points.items()], self._temporality),
                )
                for instrument, points in self._points.values()
            ]
            if self._temporality is AggregationTemporality.DELTA:
                self._points.clear()
                self._start_ns = now_ns
            else:
                for _, points in self._points.values():
                    for point in points.values():
                        point.exemplars = {}
        return metrics
