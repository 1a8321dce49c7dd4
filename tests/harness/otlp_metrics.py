"""OTLP metrics from a collector: the newest value of each, and the same on an HTTP page for Prometheus.

Prometheus takes OTLP itself from 2.47 on, which is newer than what Debian 12 has, and rotel does not write to it. So
the page is made by OpenTelemetry's own Prometheus exporter, whose translation of names, units and types is the one of
the specification.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.exporter.prometheus import _CustomCollector
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as proto
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.registry import Collector


@dataclass(frozen=True)
class Exemplar:
    """An exemplar of a histogram's point."""

    trace_id: str
    span_id: str
    value: float


class MetricStore(Collector):
    """The newest state of each metric of each resource, and every exemplar."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[tuple[str, str], tuple[dict[str, Any], proto.Metric]] = {}
        self._exemplars: dict[str, set[Exemplar]] = {}  # each is sent once

    def take(self, body: bytes) -> None:
        """Keep what an ``ExportMetricsServiceRequest`` holds."""
        with self._lock:
            for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                resource = _attributes(group.resource.attributes)
                for scope in group.scope_metrics:
                    for metric in scope.metrics:
                        self._newest[str(resource.get("service.instance.id")), metric.name] = (resource, metric)
                        self._exemplars.setdefault(metric.name, set()).update(
                            Exemplar(exemplar.trace_id.hex(), exemplar.span_id.hex(), exemplar.as_double)
                            for point in metric.histogram.data_points
                            for exemplar in point.exemplars
                        )

    def names(self) -> set[str]:
        with self._lock:
            return {name for _, name in self._newest}

    def resources(self) -> list[dict[str, Any]]:
        with self._lock:
            return [resource for resource, _ in self._newest.values()]

    def attributes(self, name: str) -> list[dict[str, Any]]:
        """Attributes of each point of a metric."""
        with self._lock:
            return [
                _attributes(point.attributes)
                for (_, found), (_, metric) in self._newest.items()
                if found == name
                for point in getattr(metric, str(metric.WhichOneof("data"))).data_points
            ]

    def exemplars(self, name: str) -> set[Exemplar]:
        """All exemplars of a histogram."""
        with self._lock:
            return set(self._exemplars.get(name, ()))

    def collect(self) -> Iterator[Metric]:
        """As Prometheus metrics, for a page."""
        with self._lock:
            newest = list(self._newest.values())
        scope = InstrumentationScope("corevital")
        groups = [
            sdk.ResourceMetrics(Resource(resource), [sdk.ScopeMetrics(scope, [_metric(metric)], "")], "")
            for resource, metric in newest
        ]
        translator = _CustomCollector(
            disable_target_info=True,
            scope_info_enabled=False,
            resource_attribute_filter=lambda name: name == "service.instance.id",
        )
        translator.add_metrics_data(sdk.MetricsData(groups))
        yield from translator.collect()

    @contextmanager
    def page(self) -> Iterator[int]:
        """Serves it as a ``/metrics`` page; yields the port."""
        registry = CollectorRegistry()
        registry.register(self)
        server, thread = start_http_server(0, "127.0.0.1", registry)
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _attributes(pairs: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        kind = pair.value.WhichOneof("value")
        return getattr(pair.value, kind) if kind in ("string_value", "bool_value", "int_value", "double_value") else ""

    return {pair.key: value(pair) for pair in pairs}


def _metric(metric: proto.Metric) -> sdk.Metric:
    kind = str(metric.WhichOneof("data"))
    data = getattr(metric, kind)
    points: list[Any] = [_histogram(point) if kind == "histogram" else _number(point) for point in data.data_points]
    made: Any
    if kind == "gauge":
        made = sdk.Gauge(points)
    else:
        assert data.aggregation_temporality == proto.AGGREGATION_TEMPORALITY_CUMULATIVE, metric.name
        cumulative = sdk.AggregationTemporality.CUMULATIVE
        made = sdk.Histogram(points, cumulative) if kind == "histogram" else sdk.Sum(points, cumulative, True)
        assert kind == "histogram" or data.is_monotonic, metric.name
    return sdk.Metric(metric.name, metric.description, metric.unit, made)


def _number(point: proto.NumberDataPoint) -> sdk.NumberDataPoint:
    value = point.as_double if point.WhichOneof("value") == "as_double" else point.as_int
    return sdk.NumberDataPoint(_attributes(point.attributes), 0, point.time_unix_nano, value)


def _histogram(point: proto.HistogramDataPoint) -> sdk.HistogramDataPoint:
    bounds, counts = list(point.explicit_bounds), list(point.bucket_counts)
    labels = _attributes(point.attributes)
    return sdk.HistogramDataPoint(labels, 0, point.time_unix_nano, point.count, point.sum, counts, bounds, 0, 0)
