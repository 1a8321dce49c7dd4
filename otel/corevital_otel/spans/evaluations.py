"""The evaluation of each exported span as an OTLP log record, besides the span event of the same content.

The API of span events is deprecated: by the conventions ``gen_ai.evaluation.result`` is an event, which is a log record
that names its span.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits

from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.otlp.delivery import Delivery
from corevital_otel.otlp.destination import Destination
from corevital_otel.otlp.encoding import group_of, log_record
from corevital_otel.otlp.exporter import ListeningExporter
from corevital_otel.otlp.kinds import LOGS
from corevital_otel.otlp.queue import Queue, drop
from corevital_otel.otlp.variables import given, whole_number
from corevital_otel.spans.attributes import evaluation_of
from corevital_otel.spans.record import SpanRecord


class EvaluationLogs:
    """Makes log records and hands them to their own exporter.

    Args:
        counters: counts deliveries and losses.
        resource: that of the spans.
        where: the destination.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a wrong value.
    """

    def __init__(self, counters: Counters, resource: Resource, where: Destination) -> None:
        self._counters = counters
        self._group = group_of(resource)
        self._limits = limits()
        delivery = Delivery(ListeningExporter(where, LOGS), where.endpoint, counters, kind=LOGS)
        self._queue = Queue(delivery, counters, lambda ids, delivered: None)

    def send(self, record: SpanRecord) -> None:
        """Queue the log record of a span, if the span is exported. Returns at once."""
        ids = record.ids
        if not ids.exported:
            return
        try:
            item = log_record(
                names.EVALUATION_EVENT,
                int(ids.trace_id, 16),
                int(ids.span_id, 16),
                max(record.start_ns, record.end_ns),
                evaluation_of(record.attributes),
                self._group,
                self._limits,
            )
        except Exception as error:
            drop(self._counters, ids.span_id, error, LOGS)
            return
        self._queue.put(item)

    def stop(self) -> None:
        """Take nothing more, and deliver what is queued without pauses. Returns at once."""
        self._queue.stop()

    def shutdown(self, timeout_s: float) -> None:
        """Deliver what is queued, for at most this long, even if the endpoint hangs."""
        self._queue.close(timeout_s)


def limits(env: Mapping[str, str] = os.environ) -> SpanLimits:
    """The limits of a log record's attributes: ``OTEL_LOGRECORD_ATTRIBUTE_*``, else those of all attributes."""
    count, length = (
        None if (value := given(env, f"OTEL_LOGRECORD_ATTRIBUTE_{name}_LIMIT")) is None else whole_number(value, 0)
        for name in ("COUNT", "VALUE_LENGTH")
    )
    return SpanLimits(max_attributes=count, max_attribute_length=length)
