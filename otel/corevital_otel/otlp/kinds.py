"""What differs between the two kinds of items that are queued here and sent: spans and log records.

Each kind has its own queue, thread and connection, so that trouble with one never holds up the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from corevital_otel.losses import Loss
from corevital_otel.otlp.encoding import EncodedItem, log_request, request
from corevital_otel.otlp.variables import Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of item.

    Attributes:
        signal: as the ``OTEL_*`` variables spell it.
        label: of ``corevital.telemetry.exported``.
        essential: False: a backend may well not take this signal; then it is not asked again for some minutes.
        processor: of the variables ``OTEL_…_MAX_QUEUE_SIZE`` and its like.
        delay_ms: default of that processor's ``SCHEDULE_DELAY``.
        queue_bytes: most bytes of encoded items that wait or are being sent.
        module, exporter, encoder: the SDK's names: of its exporter's module and class, and of what encodes in there.
        request: makes a request of encoded items.
        response: the message of an answer to it.
        unencodable, too_large, queue_full, export_failed, rejected, shutdown: how one is lost.
        failing: the warning when delivery fails: place, cause.
        again: when it works again: place.
        refused: when some are refused for what is in them: place, number, of how many, cause.
        partly: when an accepted request has rejected ones: the same.
        left: when some are left at the end: number, place.
        dropped: when one cannot be sent: id, cause.
    """

    signal: Signal
    label: str
    essential: bool
    processor: str
    delay_ms: int
    queue_bytes: int
    module: str
    exporter: str
    encoder: str
    request: Callable[[Iterable[EncodedItem]], Any]
    response: Any
    unencodable: Loss
    too_large: Loss
    queue_full: Loss
    export_failed: Loss
    rejected: Loss
    shutdown: Loss
    failing: str
    again: str
    refused: str
    partly: str
    left: str
    dropped: str


SPANS: Final = Kind(
    signal="TRACES",
    label="traces",
    essential=True,
    processor="BSP",
    delay_ms=5000,
    queue_bytes=64 << 20,
    module="trace_exporter",
    exporter="OTLPSpanExporter",
    encoder="encode_spans",
    request=request,
    response=ExportTraceServiceResponse,
    unencodable=Loss.SPAN_UNENCODABLE,
    too_large=Loss.SPAN_TOO_LARGE,
    queue_full=Loss.SPAN_QUEUE_FULL,
    export_failed=Loss.SPAN_EXPORT_FAILED,
    rejected=Loss.SPAN_REJECTED,
    shutdown=Loss.SPAN_SHUTDOWN,
    failing="spans cannot be delivered to %s (%s): check OTEL_EXPORTER_OTLP_ENDPOINT and the collector; requests are "
    "unaffected, reports stay in the store, undelivered spans are counted",
    again="spans are delivered to %s again",
    refused="%s refused %d of %d spans permanently (%s): they are counted and stay in the store; logged once",
    partly="%s rejected %d of %d spans (%s): they are counted, and not sent again",
    left="%d spans could not be delivered to %s before the end",
    dropped="span %s cannot be sent (%s): only this span is dropped; further such spans are only counted",
)

KEPT_SPANS: Final = replace(
    SPANS,
    failing="spans cannot be delivered to %s (%s): check OTEL_EXPORTER_OTLP_ENDPOINT and the collector; requests are "
    "unaffected, spans wait in the store and are sent later",
    refused="%s refused %d of %d spans permanently (%s): they wait in the store and are tried again; logged once",
    left="%d spans could not be delivered to %s before the end: the next start sends them",
)
"""Spans that the store keeps until they are delivered."""

STORED_SPANS: Final = replace(
    SPANS,
    failing="spans that wait in the store cannot be delivered to %s (%s): they are tried again; check "
    "OTEL_EXPORTER_OTLP_ENDPOINT and the collector",
    again="spans that wait in the store are delivered to %s again",
    refused="%s refused %d of %d spans that wait in the store (%s): they are tried again in an hour; logged once",
)
"""The same, on their way from there."""

LOGS: Final = Kind(
    signal="LOGS",
    label="logs",
    essential=False,
    processor="BLRP",
    delay_ms=1000,
    queue_bytes=8 << 20,
    module="_log_exporter",
    exporter="OTLPLogExporter",
    encoder="encode_logs",
    request=log_request,
    response=ExportLogsServiceResponse,
    unencodable=Loss.LOG_UNENCODABLE,
    too_large=Loss.LOG_UNENCODABLE,
    queue_full=Loss.LOG_QUEUE_FULL,
    export_failed=Loss.LOG_EXPORT_FAILED,
    rejected=Loss.LOG_REJECTED,
    shutdown=Loss.LOG_SHUTDOWN,
    failing="log records of evaluations cannot be delivered to %s (%s): set OTEL_LOGS_EXPORTER=none if it takes no "
    "logs, else check the collector; requests and spans are unaffected, and spans have the same evaluations",
    again="log records of evaluations are delivered to %s again",
    refused="%s refused %d of %d log records permanently (%s): they are counted, and spans have the same evaluations; "
    "logged once",
    partly="%s rejected %d of %d log records (%s): they are counted, and not sent again",
    left="%d log records of evaluations could not be delivered to %s before the end",
    dropped="the log record of span %s cannot be sent (%s): further such log records are only counted",
)
