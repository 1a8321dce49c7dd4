"""One OpenTelemetry span for each report, from a provider of our own.

vLLM sets the *global* provider when its tracing is on, so ours is private. Without an endpoint in the ``OTEL_*``
variables nothing is exported and nothing connects anywhere; spans are made all the same, for their ids.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import uuid
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Status, StatusCode, format_span_id, format_trace_id

from corevital_otel import __version__
from corevital_otel import conventions as names
from corevital_otel.attributes import span_attributes, span_name
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport, Series
from corevital_otel.settings import SettingsError

PROTOCOLS: Final = ("grpc", "http/protobuf")

_DEFAULT_SERVICE: Final = "vllm"
_logger = logging.getLogger("corevital.otlp")


class SpanIds(NamedTuple):
    """Ids of an emitted span, in hex: 32 and 16 digits."""

    trace_id: str
    span_id: str


def endpoint() -> str | None:
    """Where spans go by the ``OTEL_*`` variables, or None if nowhere."""
    env = os.environ
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER", "") == "none":
        return None
    return env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None


def protocol() -> str:
    """The OTLP protocol by the ``OTEL_*`` variables; gRPC where they are silent, as in the Python SDK and in vLLM.

    Raises:
        SettingsError: neither ``grpc`` nor ``http/protobuf``.
    """
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if value := os.environ.get(variable):
            if value not in PROTOCOLS:
                raise SettingsError(f"{variable}={value!r} is not allowed: use one of {', '.join(PROTOCOLS)}")
            return value
    return "grpc"


class SpanEmitter:
    """Makes spans and hands them to the exporter.

    Args:
        counters: takes ``corevital.telemetry.exported`` and ``…dropped``.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a value we cannot follow.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._ids = RandomIdGenerator()
        # limits that fit what we emit; the user's OTEL_SPAN_* and OTEL_ATTRIBUTE_* variables still apply
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=_resource(), shutdown_on_exit=False, span_limits=SpanLimits()
        )
        self._tracer = self._provider.get_tracer("corevital", __version__)
        self._exporter: CountingExporter | None = None
        if endpoint() is not None:
            self._exporter = CountingExporter(_otlp_exporter(protocol()), counters)
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._queue_size = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", "2048"))

    def emit(self, report: RequestReport) -> SpanIds:
        """Make the span of a report. Returns at once; the export happens in the background."""
        span = self._tracer.start_span(
            span_name(report),
            context=report.parent if report.parent is not None else Context(),  # an empty one: never the current span
            kind=SpanKind.INTERNAL,
            attributes=span_attributes(report),
            start_time=report.admitted.arrival_ns,
        )
        end_ns = max(report.outcome.end_ns, report.admitted.arrival_ns)
        if report.series is not None:
            for attributes in series_events(report.series):
                span.add_event(names.SERIES_EVENT, attributes, timestamp=end_ns)
        if report.outcome.reason == "error":
            span.set_status(Status(StatusCode.ERROR, "the engine reported an error"))
        if self._exporter is not None:
            self._exporter.expect(self._queue_size)
        span.end(end_ns)
        context = span.get_span_context()
        if not context.is_valid:  # OTEL_SDK_DISABLED: the store still wants ids that are unique
            return SpanIds(format_trace_id(self._ids.generate_trace_id()), format_span_id(self._ids.generate_span_id()))
        return SpanIds(format_trace_id(context.trace_id), format_span_id(context.span_id))

    def shutdown(self, timeout_s: float) -> None:
        """Deliver what is queued, for at most this long. An endpoint that hangs does not hold the process up."""
        thread = threading.Thread(target=self._provider.shutdown, name="corevital-shutdown", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if self._exporter is not None:
            self._exporter.give_up()


def series_events(series: Series) -> list[dict[str, Any]]:
    """Attributes of the ``corevital.series`` events of a series, at most 256 tokens each."""
    events = []
    for offset in range(0, len(series), names.SERIES_EVENT_TOKENS):
        at = slice(offset, offset + names.SERIES_EVENT_TOKENS)
        event: dict[str, Any] = {"offset": offset}
        for name in ("entropy", "surprisal", "margin", "topk_mass"):
            values = getattr(series, name)[at].tolist()
            event[name] = [value if math.isfinite(value) else names.SERIES_UNKNOWN for value in values]
        events.append(event)
    return events


class CountingExporter(SpanExporter):
    """Counts what the exporter inside says of each batch; warns once when delivery fails, once when it is back."""

    def __init__(self, inner: SpanExporter, counters: Counters) -> None:
        self._inner = inner
        self._counters = counters
        self._failing = False
        self._pending = 0
        self._lock = threading.Lock()
        _quieten_library()

    def expect(self, queue_size: int) -> None:
        """One more span is on its way; the batch processor silently drops the oldest of a full queue, so count it."""
        with self._lock:
            if self._pending < queue_size:
                self._pending += 1
                return
        self._counters.add(names.DROPPED, what="span", why="queue_full")

    def give_up(self) -> None:
        """The end has come: what is still on its way counts as lost."""
        with self._lock:
            left, self._pending = self._pending, 0
        if left:
            self._counters.add(names.DROPPED, left, what="span", why="shutdown")
            _logger.warning("%d spans could not be delivered to %s before the end", left, endpoint())

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch; a failure is counted and never raised."""
        cause = "the collector refused them or could not be reached in time"
        _ours.exporting = True
        try:
            result = self._inner.export(spans)
        except Exception as error:
            result, cause = SpanExportResult.FAILURE, str(error)
        finally:
            _ours.exporting = False
        with self._lock:
            self._pending = max(self._pending - len(spans), 0)
        if result is SpanExportResult.SUCCESS:
            self._counters.add(names.EXPORTED, len(spans), signal="traces")
            if self._failing:
                _logger.warning("spans are delivered to %s again", endpoint())
        else:
            self._counters.add(names.DROPPED, len(spans), what="span", why="export_failed")
            if not self._failing:
                _logger.warning(
                    "spans cannot be delivered to %s (%s): check OTEL_EXPORTER_OTLP_ENDPOINT and the collector; "
                    "serving goes on, reports stay in the store, undelivered spans are counted",
                    endpoint(),
                    cause,
                )
        self._failing = result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        """Shut the exporter inside down."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the exporter inside."""
        return self._inner.force_flush(timeout_millis)


_ours = threading.local()
"""``exporting``: this thread is inside an export of ours."""


class _NotOurs(logging.Filter):
    """Drops a library's lines about our exports: one clear line of ours stands for them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_ours, "exporting", False)


_NOT_OURS: Final = _NotOurs()


def _quieten_library() -> None:
    for name in (
        "opentelemetry.exporter.otlp.proto.grpc.exporter",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry.exporter.http.transport",
        "urllib3.connectionpool",
    ):
        logging.getLogger(name).addFilter(_NOT_OURS)


def _resource() -> Resource:
    """The SDK's own resource (``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``); ``vllm`` where no name is set."""
    resource = Resource.create()
    ours: dict[str, str] = {}
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        ours[SERVICE_NAME] = _DEFAULT_SERVICE
    if SERVICE_INSTANCE_ID not in resource.attributes:
        ours[SERVICE_INSTANCE_ID] = str(uuid.uuid4())
    return resource.merge(Resource(ours))


def _otlp_exporter(protocol_name: str) -> SpanExporter:
    if protocol_name == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter()
