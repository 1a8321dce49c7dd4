"""One OpenTelemetry span for each report, from a provider of our own.

vLLM sets the *global* provider when its tracing is on, so ours is private. Without an endpoint in the ``OTEL_*``
variables nothing is exported and nothing connects anywhere; spans are made all the same, for their ids.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_span_id, format_trace_id

from corevital_otel import __version__
from corevital_otel import conventions as names
from corevital_otel.attributes import span_attributes, span_name
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport, Series
from corevital_otel.settings import SettingsError

PROTOCOLS: Final = ("grpc", "http/protobuf")

_DEFAULT_SERVICE: Final = "vllm"
_QUEUE: Final = 2048
_BATCH: Final = 512
"""The SDK's own defaults; ``OTEL_BSP_MAX_QUEUE_SIZE`` and ``OTEL_BSP_MAX_EXPORT_BATCH_SIZE`` go before them."""
_REQUEST_BYTES: Final = 3_000_000
"""Of a request to the collector, about: gRPC servers take 4 MiB unless told otherwise, and refuse more as a whole."""
_SPAN_BYTES: Final = 4_096
_EVENT_BYTES: Final = 12_000
"""Generous estimates: about 50 attributes; 256 tokens of four doubles, 11 bytes each."""
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


class _Ids(IdGenerator):
    """Ids that neither use up nor follow the process's random numbers, which a script or an engine may have seeded."""

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or self.generate_span_id()

    def generate_trace_id(self) -> int:
        return secrets.randbits(128) or self.generate_trace_id()


class SpanEmitter:
    """Makes spans and hands them to the exporter.

    Args:
        counters: takes ``corevital.telemetry.exported`` and ``…dropped``.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a value we cannot follow.
    """

    def __init__(self, counters: Counters) -> None:
        self._ids = _Ids()
        self._exporter: CountingExporter | None = None
        try:
            self._provider = TracerProvider(
                sampler=ALWAYS_ON,
                resource=_resource(),
                shutdown_on_exit=False,
                span_limits=_limits(),
                id_generator=self._ids,
            )
            if endpoint() is not None:
                self._exporter = CountingExporter(_otlp_exporter(protocol()), counters)
                self._provider.add_span_processor(_bounded_processor(self._exporter))
        except SettingsError:
            raise
        except Exception as error:  # the SDK's parts raise what they like; none of their values is ours to list
            cause = " ".join(str(error).split())
            raise SettingsError(f"an OTEL_* variable has a value that OpenTelemetry refuses: {cause}") from error
        self._tracer = self._provider.get_tracer("corevital", __version__)

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
        ids = self._ids_of(span)
        span.end(end_ns)
        return ids

    def _ids_of(self, span: Span) -> SpanIds:
        context = span.get_span_context()
        trace_id, span_id = context.trace_id, context.span_id
        if not span.is_recording():
            # OTEL_SDK_DISABLED: there is no span but the caller's, if any, and the store wants ids that are unique
            trace_id = trace_id if context.is_valid else self._ids.generate_trace_id()
            span_id = self._ids.generate_span_id()
        return SpanIds(format_trace_id(trace_id), format_span_id(span_id))

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
        self._given_up = False
        self._lock = threading.Lock()
        _quieten_library()

    def expect(self, bound: int) -> bool:
        """One more span wants to be exported. False, and it is counted as lost, where so many are on their way."""
        with self._lock:
            if self._pending < bound:
                self._pending += 1
                return True
        self._counters.add(names.DROPPED, what="span", why="queue_full")
        return False

    def give_up(self) -> None:
        """The end has come: what is still on its way counts as lost."""
        with self._lock:
            left, self._pending = self._pending, 0
            self._given_up = True
        if left:
            self._counters.add(names.DROPPED, left, what="span", why="shutdown")
            _logger.warning("%d spans could not be delivered to %s before the end", left, endpoint())

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch, in requests that a collector takes; a failure is counted and never raised."""
        results = [self._export(request) for request in _requests(spans)]
        failed = SpanExportResult.FAILURE in results
        return SpanExportResult.FAILURE if failed else SpanExportResult.SUCCESS

    def _export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        said: list[str] = []
        _ours.said = said
        try:
            result = self._inner.export(spans)
        except Exception as error:
            result = SpanExportResult.FAILURE
            said.append(str(error))
        finally:
            _ours.said = None
        with self._lock:
            if self._given_up:  # these are counted as lost already
                return result
            self._pending -= len(spans)
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
                    _in_one_line(said),
                )
        self._failing = result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        """Shut the exporter inside down."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the exporter inside."""
        return self._inner.force_flush(timeout_millis)


def _requests(spans: Sequence[ReadableSpan]) -> Iterator[list[ReadableSpan]]:
    """The spans of a batch in portions of one request each, at least one span in each."""
    portion: list[ReadableSpan] = []
    total = 0
    for span in spans:
        size = _SPAN_BYTES + _EVENT_BYTES * len(span.events)
        if portion and total + size > _REQUEST_BYTES:
            yield portion
            portion, total = [], 0
        portion.append(span)
        total += size
    if portion:
        yield portion


class _BoundedProcessor(BatchSpanProcessor):
    """A batch processor that refuses a span when full; the SDK's own drops the oldest one and counts nothing."""

    def __init__(self, exporter: CountingExporter, queue: int, batch: int) -> None:
        super().__init__(exporter, max_queue_size=queue, max_export_batch_size=batch)
        self._counting = exporter
        self._bound = queue

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span that has ended, if there is room."""
        if self._counting.expect(self._bound):
            super().on_end(span)


def _bounded_processor(exporter: CountingExporter) -> _BoundedProcessor:
    queue = _positive("OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE)
    return _BoundedProcessor(exporter, queue, min(_positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _BATCH), queue))


def _positive(variable: str, default: int) -> int:
    value = os.environ.get(variable, "").strip() or str(default)
    if not value.isdecimal() or int(value) < 1:
        raise SettingsError(f"{variable}={value!r} is not allowed: use a whole number from 1 up")
    return int(value)


def _limits() -> SpanLimits:
    # the SDK's 128 events a span would cut the start off a series of more than 32,768 tokens
    own = os.environ.get("OTEL_SPAN_EVENT_COUNT_LIMIT")
    return SpanLimits() if own else SpanLimits(max_events=SpanLimits.UNSET)


def _in_one_line(said: list[str]) -> str:
    # the first line has the cause of the first try, the last one how it ended
    lines = dict.fromkeys((said[0], said[-1])) if said else ("it refused them or could not be reached in time",)
    return " ".join("; ".join(lines).split())[:400]


_ours = threading.local()
"""``said``: what the library has said in an export of ours that this thread is inside of, else None."""


class _NotOurs(logging.Filter):
    """Keeps a library's lines about our exports out of the log: one clear line of ours stands for them."""

    def filter(self, record: logging.LogRecord) -> bool:
        said: list[str] | None = getattr(_ours, "said", None)
        if said is None:
            return True
        said.append(record.getMessage())
        return False


_NOT_OURS: Final = _NotOurs()


def _quieten_library() -> None:
    for name in (
        "opentelemetry.exporter.otlp.proto.grpc.exporter",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry.exporter.otlp.proto.common._internal",
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
