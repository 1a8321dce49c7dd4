"""Metrics over OTLP, from a provider of our own; the ``OTEL_*`` variables say where to, how and how often.

Without an endpoint there they go nowhere, and nothing connects. A measurement made within a sampled span's context
carries that span as its exemplar.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from corevital_otel import __version__
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.destination import endpoint_of, protocol_of, shown
from corevital_otel.errors import SettingsError
from corevital_otel.metrics.instruments import INSTRUMENTS, Instrument
from corevital_otel.otlp import failure, http_session, listen
from corevital_otel.overheard import overheard

_logger = logging.getLogger("corevital.otlp")


def endpoint() -> str | None:
    """Where metrics go by the ``OTEL_*`` variables, or None if nowhere."""
    return endpoint_of(os.environ, "METRICS")


def protocol() -> str:
    """The OTLP protocol by the ``OTEL_*`` variables; gRPC where they are silent.

    Raises:
        SettingsError: neither ``grpc`` nor ``http/protobuf``.
    """
    return protocol_of(os.environ, "METRICS")


class Otlp:
    """Output over OTLP, exported by a thread of the SDK's.

    Args:
        resource: the one that spans have too.
        counters: takes what was exported and what was not.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a value we cannot follow.
    """

    def __init__(self, resource: Resource, counters: Counters) -> None:
        wire = protocol()
        try:
            reader = PeriodicExportingMetricReader(_Counting(wire, counters))
        except Exception as error:  # the SDK's parts raise what they like
            cause = " ".join(str(error).split())
            raise SettingsError(f"an OTEL_* variable has a value that OpenTelemetry refuses: {cause}") from error
        self._provider = MeterProvider([reader], resource, shutdown_on_exit=False, views=_views())
        meter = self._provider.get_meter("corevital", __version__)
        makers: dict[str, Any] = {
            "counter": meter.create_counter,
            "gauge": meter.create_gauge,
            "histogram": meter.create_histogram,
        }
        self._instruments = {
            name: makers[found.kind](name, unit=found.unit, description=found.text)
            for name, found in INSTRUMENTS.items()
        }

    def put(self, instrument: Instrument, value: float, labels: Mapping[str, str], context: Context) -> None:
        """See :meth:`Output.put`."""
        found = self._instruments[instrument.name]
        if instrument.kind == "counter":
            found.add(value, labels, context)
        elif instrument.kind == "histogram":
            found.record(value, labels, context)
        else:
            found.set(value, labels, context)

    def close(self, timeout_s: float) -> None:
        """See :meth:`Output.close`. An endpoint that hangs does not hold the process up."""
        thread = threading.Thread(
            target=self._provider.shutdown, args=(timeout_s * 1000,), name="corevital-metrics-shutdown", daemon=True
        )
        thread.start()
        thread.join(timeout_s)


def _views() -> list[View]:
    chosen = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "")
    if chosen.strip().lower() == "base2_exponential_bucket_histogram":
        return []  # the user wants no fixed buckets
    return [
        View(instrument_name=name, aggregation=ExplicitBucketHistogramAggregation(found.buckets))
        for name, found in INSTRUMENTS.items()
        if found.buckets
    ]


def _exporter(wire: str, heard: Callable[[Any], bool]) -> MetricExporter:
    if wire == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

        exporter = GrpcExporter()
        listen(exporter, heard, lambda response: None)
        return exporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

    return HttpExporter(session=http_session("METRICS", heard))


class _Counting(MetricExporter):
    """Counts what the SDK's exporter says of each export; warns once when it fails, once when it is back."""

    def __init__(self, wire: str, counters: Counters) -> None:
        self._inner = _exporter(wire, self._heard)
        super().__init__(self._inner._preferred_temporality, self._inner._preferred_aggregation)
        self._counters = counters
        self._failing = False
        self._failure = ""

    def _heard(self, answer: Any) -> bool:
        self._failure = failure(answer)
        return False  # whether to try again is for the SDK to decide

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Export; a failure is counted and never raised."""
        self._failure = ""
        with overheard("metric_exporter") as said:
            try:
                result = self._inner.export(metrics_data, timeout_millis, **kwargs)
            except Exception as error:
                result = MetricExportResult.FAILURE
                said.append(str(error))
        points, where = _points(metrics_data), shown(endpoint() or "")
        if result is MetricExportResult.SUCCESS:
            self._counters.add(names.EXPORTED, points, signal="metrics")
            if self._failing:
                _logger.warning("metrics are delivered to %s again", where)
        else:
            self._counters.add(names.DROPPED, points, what="metric", why="export_failed")
            if not self._failing:
                cause = self._failure or "; ".join(dict.fromkeys(said)) or "it could not be reached in time"
                _logger.warning(
                    "metrics cannot be delivered to %s (%s): check the collector, or set OTEL_METRICS_EXPORTER=none "
                    "where it takes none; serving goes on, and /metrics has them all",
                    where,
                    " ".join(cause.split())[:400],
                )
        self._failing = result is not MetricExportResult.SUCCESS
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flush the exporter inside."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Shut the exporter inside down."""
        self._inner.shutdown(timeout_millis, **kwargs)


def _points(data: MetricsData) -> int:
    return sum(
        len(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )
