"""Our sums are those of the SDK's histograms, for any values, in either temporality."""

from __future__ import annotations

import random
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import Histogram as Instrumented
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, Metric, MetricsData
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from corevital_otel import conventions as names
from corevital_otel.metrics.histograms import Histograms
from corevital_otel.metrics.instruments import INSTRUMENTS

RISK = INSTRUMENTS[names.RISK_SCORE]


def within(sampled: bool, span_id: int = 7) -> Context:
    span = SpanContext(5, span_id, is_remote=False, trace_flags=TraceFlags(int(sampled)))
    return trace.set_span_in_context(NonRecordingSpan(span), Context())


def points(metrics: list[Metric]) -> list[dict[str, Any]]:
    names = ("attributes", "count", "sum", "bucket_counts", "explicit_bounds", "min", "max")
    return sorted(
        (
            {name: _comparable(getattr(point, name)) for name in names}
            for metric in metrics
            for point in metric.data.data_points
        ),
        key=lambda point: str(point["attributes"]),
    )


def _comparable(found: Any) -> Any:
    if isinstance(found, float):
        return pytest.approx(found)  # cumulative sums of the SDK are added up in another order
    return list(found) if isinstance(found, tuple) else found


def in_first_scope(data: MetricsData | None) -> list[Metric]:
    return [] if data is None else list(data.resource_metrics[0].scope_metrics[0].metrics)


@pytest.mark.parametrize("temporality", [AggregationTemporality.CUMULATIVE, AggregationTemporality.DELTA])
def test_the_sums_are_the_sdks(temporality: AggregationTemporality) -> None:
    reader = InMemoryMetricReader(preferred_temporality={Instrumented: temporality})
    view = View(instrument_name=RISK.name, aggregation=ExplicitBucketHistogramAggregation(RISK.buckets))
    provider = MeterProvider([reader], views=[view], shutdown_on_exit=False)
    meter = provider.get_meter("test")
    theirs, other = meter.create_histogram(RISK.name, RISK.unit), meter.create_counter("other")
    ours, rng = Histograms(temporality), random.Random(0)
    for _ in range(3):  # exports
        for _ in range(200):
            value = rng.choice([0.0, 1.0, 7.5, rng.choice(RISK.buckets), rng.random()])
            labels = {"gen_ai.request.model": rng.choice("ab"), "basis": "prior"}
            theirs.record(value, labels)
            ours.record(RISK, value, labels, Context())
        other.add(1)
        wanted = [metric for metric in in_first_scope(reader.get_metrics_data()) if metric.name == RISK.name]
        other.add(1)
        found: list[Any] = [
            metric
            for metric in in_first_scope(ours.added_to(_other(reader)))
            if isinstance(metric.data, type(wanted[0].data))
        ]
        assert points(found) == points(wanted)
        assert found[0].data.aggregation_temporality is temporality
        assert (found[0].name, found[0].unit) == (RISK.name, RISK.unit)
    provider.shutdown()


def _other(reader: InMemoryMetricReader) -> MetricsData:
    """Metrics of the SDK without the histogram."""
    data = reader.get_metrics_data()
    assert data is not None
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    metrics[:] = [metric for metric in metrics if metric.name != RISK.name]  # type: ignore[index]
    return data


@pytest.mark.parametrize(
    ("chosen", "sampled", "kept"),
    [("", True, 1), ("", False, 0), ("Trace_Based ", True, 1), ("always_off", True, 0), ("always_on", False, 1)],
)
def test_exemplars_follow_the_filter(chosen: str, sampled: bool, kept: int) -> None:
    histograms = Histograms(AggregationTemporality.CUMULATIVE, chosen)
    for span_id in (7, 8):  # of a bucket the last one
        histograms.record(RISK, 0.5, {"basis": "prior"}, within(sampled, span_id))
    (metric,) = histograms._collect()
    exemplars = metric.data.data_points[0].exemplars
    assert [(one.value, one.span_id, one.trace_id) for one in exemplars] == [(0.5, 8, 5)] * kept
    (metric,) = histograms._collect()
    assert not metric.data.data_points[0].exemplars, "of the time since the last export"


def test_an_interval_without_a_value_sends_no_point() -> None:
    histograms = Histograms(AggregationTemporality.DELTA)
    histograms.record(RISK, 0.5, {"basis": "prior"}, Context())
    assert len(histograms._collect()) == 1
    assert histograms._collect() == []
