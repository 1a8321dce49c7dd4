"""Metrics over OTLP, from a private provider; the ``OTEL_*`` variables set where to, how and how often.

Without an endpoint nothing is sent and nothing connects. A measurement made within a sampled span's context
carries that span as its exemplar.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource

from corevital.log import warn_once
from corevital_otel import __version__
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.metrics.histograms import Histograms
from corevital_otel.metrics.instruments import INSTRUMENTS, Instrument
from corevital_otel.otlp.answers import Verdict, accepted, error_verdict, grpc_verdict, http_verdict
from corevital_otel.otlp.destination import shown
from corevital_otel.otlp.exporter import Ended, http_session, instead_of, listen, listen_over_http, reading_variables
from corevital_otel.otlp.quiet import quieted
from corevital_otel.otlp.redact import foreign
from corevital_otel.otlp.variables import endpoint_of, given, protocol_of

_PACKAGES: Final = {"grpc": "grpc", "http/protobuf": "http"}
_logger = logging.getLogger("corevital.otlp")


class Otlp:
    """Output over OTLP, exported by a thread of the SDK.

    Args:
        resource: the one that spans have too.
        counters: counts deliveries and losses.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a wrong value.
    """

    def __init__(self, resource: Resource, counters: Counters) -> None:
        wire = protocol_of(os.environ, "METRICS")
        module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{_PACKAGES[wire]}.metric_exporter")
        with reading_variables("METRICS"):
            exporter = _Counting(module.OTLPMetricExporter, wire, counters)
            reader = PeriodicExportingMetricReader(exporter)
        self._provider = MeterProvider([reader], resource, shutdown_on_exit=False)
        meter = self._provider.get_meter("corevital", __version__)
        # counters and gauges are read at each export: adding to one of the SDK's costs ten times as much
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        self._histograms: dict[str, Any] = {}  # of the SDK, where exponential buckets are set
        self._sums = exporter.histograms
        for name, found in INSTRUMENTS.items():
            if found.kind == "histogram" and _wants_exponential():
                self._histograms[name] = meter.create_histogram(name, unit=found.unit, description=found.text)
            if found.kind == "histogram":
                continue
            make = meter.create_observable_counter if found.kind == "counter" else meter.create_observable_gauge
            values = self._values[name] = {}
            make(name, [partial(_observations, values)], found.unit, found.text)

    def put(self, instrument: Instrument, value: float, labels: Mapping[str, str], context: Context) -> None:
        """See :meth:`Output.put`."""
        if instrument.kind == "histogram":
            exponential = self._histograms.get(instrument.name)
            if exponential is None:
                self._sums.record(instrument, value, labels, context)
            else:
                exponential.record(value, labels, context)
            return
        values, key = self._values[instrument.name], tuple(labels.items())
        values[key] = value + values.get(key, 0) if instrument.kind == "counter" else value

    def close(self, timeout_s: float) -> None:
        """See :meth:`Output.close`. An endpoint that hangs does not delay the process."""
        thread = threading.Thread(
            target=self._provider.shutdown, args=(timeout_s * 1000,), name="corevital-metrics-shutdown", daemon=True
        )
        thread.start()
        thread.join(timeout_s)


def _observations(values: Mapping[tuple[tuple[str, str], ...], float], options: CallbackOptions) -> list[Observation]:
    return [Observation(value, dict(labels)) for labels, value in list(values.items())]


def _wants_exponential() -> bool:
    """Whether the user sets exponential buckets."""
    chosen = given(os.environ, "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION")
    return (chosen or "").lower() == "base2_exponential_bucket_histogram"


class _Counting(MetricExporter):
    """Counts the outcome of each export; warns once when it fails and once when it works again."""

    def __init__(self, maker: Any, wire: str, counters: Counters) -> None:
        self._verdict: Verdict | None = None
        if wire == "grpc":
            self._inner: MetricExporter = maker()
            listen(self._inner, self._refused, self._accepted)
        else:
            self._inner = maker(session=http_session("METRICS", self._on_answer))
            listen_over_http(self._inner, self._on_answer)
        super().__init__(self._inner._preferred_temporality, self._inner._preferred_aggregation)
        preferred = (self._inner._preferred_temporality or {}).get(Histogram, AggregationTemporality.CUMULATIVE)
        self.histograms = Histograms(preferred, os.environ.get("OTEL_METRICS_EXEMPLAR_FILTER", ""))
        self._counters = counters
        self._failing = False

    def _on_answer(self, answer: Any, body: bytes | None) -> Exception | None:
        if isinstance(answer, Exception):
            self._verdict = error_verdict(answer, "METRICS")
        else:
            self._verdict = http_verdict(answer, body, ExportMetricsServiceResponse)
        if not self._verdict.delivered:
            self._warn(self._verdict)
        # the SDK may retry within its timeout: the sums of an interval are not sent twice
        return None if self._verdict.delivered or self._verdict.transient else Ended(self._verdict.message)

    def _refused(self, error: Any) -> Exception:
        self._verdict = grpc_verdict(error, "METRICS")
        self._warn(self._verdict)
        wait_s = self._verdict.retry_after_s
        return instead_of(error, final=not self._verdict.transient or (wait_s is not None and wait_s > 0))

    def _accepted(self, response: Any) -> None:
        self._verdict = accepted(response)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Export; a failure is counted and never raised."""
        self._verdict, failure = None, ""
        metrics_data = self.histograms.added_to(metrics_data)
        with quieted() as lines:
            try:
                result = self._inner.export(metrics_data, timeout_millis, **kwargs)
            except Ended:
                result = MetricExportResult.FAILURE
            except Exception as error:
                result = MetricExportResult.FAILURE
                failure = error_verdict(error, "METRICS").message
        verdict = self._verdict or Verdict(
            delivered=result is MetricExportResult.SUCCESS, message=failure or foreign("; ".join(dict.fromkeys(lines)))
        )
        self._count(_points(metrics_data), verdict)
        return MetricExportResult.SUCCESS if verdict.delivered else MetricExportResult.FAILURE

    def _warn(self, verdict: Verdict) -> None:
        if not self._failing:
            self._failing = True  # at the first failure: the SDK may retry for long
            _logger.warning(
                "metrics cannot be delivered to %s (%s): check the collector, or set OTEL_METRICS_EXPORTER=none "
                "if it takes none; requests are unaffected, and /metrics has all metrics",
                shown(endpoint_of(os.environ, "METRICS") or ""),
                verdict.message or "it could not be reached in time",
            )

    def _count(self, points: int, verdict: Verdict) -> None:
        where = shown(endpoint_of(os.environ, "METRICS") or "")
        if not verdict.delivered:
            self._counters.count_loss(Loss.METRIC_EXPORT_FAILED, points)
            self._warn(verdict)
            return
        rejected = min(verdict.rejected, points)
        if rejected:
            self._counters.count_loss(Loss.METRIC_REJECTED, rejected)
            warn_once("metrics:rejected", "%s rejected %d of %d data points (%s): further rejections are only counted",
                      where, rejected, points, verdict.message or "no reason given")  # fmt: skip
        if points > rejected:
            self._counters.add(names.EXPORTED, points - rejected, signal="metrics")
        if self._failing:
            _logger.warning("metrics are delivered to %s again", where)
        self._failing = False

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
