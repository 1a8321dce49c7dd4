"""One OpenTelemetry span for each report, from a private provider: an engine may set the global one.

Without an endpoint in the ``OTEL_*`` variables nothing is exported and nothing connects anywhere; spans are still made,
for their ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import format_span_id, format_trace_id

from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.otlp.delivery import SPAN_BYTES, Delivery, Fate
from corevital_otel.otlp.destination import Destination, destination
from corevital_otel.otlp.encoding import EncodedItem, group_of, series_size
from corevital_otel.otlp.exporter import ListeningExporter, reading_variables
from corevital_otel.otlp.kinds import SPANS, Kind
from corevital_otel.otlp.queue import SpanQueue, drop
from corevital_otel.otlp.resource import Facts, make_resource
from corevital_otel.otlp.variables import given, is_disabled, tidy
from corevital_otel.report import RequestReport
from corevital_otel.settings import Backend
from corevital_otel.spans.encoded import encode_record
from corevital_otel.spans.random_ids import RandomIds, trace_of
from corevital_otel.spans.record import SpanIds, SpanRecord, record_of


class SpanEmitter:
    """Makes spans and hands them to the exporter.

    Args:
        counters: counts deliveries and losses.
        where: the destination; by default what the ``OTEL_*`` variables say.
        backends: those that get additional attributes.
        engine: facts of the engine, for the resource.
        fate: called with the ids, in hex, of reports' spans, and whether they were delivered.
        unfit: called with the id of a span that can never be sent; by default ``fate`` is.
        kind: the texts of the log.

    Raises:
        SettingsError: an ``OTEL_*`` variable has a wrong value.
    """

    def __init__(
        self,
        counters: Counters,
        where: Destination | None = None,
        *,
        backends: Sequence[Backend] = (),
        engine: Facts | None = None,
        fate: Fate = lambda spans, delivered: None,
        unfit: Callable[[str], object] | None = None,
        kind: Kind = SPANS,
    ) -> None:
        self._ids = RandomIds()
        self._backends = backends
        self._counters = counters
        self._unfit = unfit or (lambda span_id: fate([span_id], False))
        self._delivery: Delivery | None = None
        self._processor: SpanQueue | None = None
        tidy()
        where = where or destination()
        with reading_variables("TRACES"):
            self._resource = make_resource(engine)
            self._group = group_of(self._resource)
            self._limits = span_limits()
        if where is not None and not is_disabled(os.environ):
            self._delivery = Delivery(ListeningExporter(where), where.endpoint, counters, fate, kind=kind)
            self._processor = SpanQueue(self._delivery, counters, fate)

    @property
    def resource(self) -> Resource:
        """The resource of all spans, and of metrics: backends join the two by it."""
        return self._resource

    @property
    def processor(self) -> SpanQueue | None:
        """Takes spans of other instrumentations for the same endpoint; None without an endpoint."""
        return self._processor

    def provider(self, sampler: Sampler, processor: SpanProcessor | None) -> TracerProvider:
        """A provider with our resource and ids, and this sampler and processor."""
        provider = TracerProvider(
            sampler=sampler,
            resource=self._resource,
            shutdown_on_exit=False,
            span_limits=self._limits,
            id_generator=self._ids,
        )
        if processor is not None:
            provider.add_span_processor(processor)
        return provider

    def record(self, report: RequestReport) -> SpanRecord:
        """The span of a report, with new ids."""
        admission = report.admission
        caller, key = admission.parent, admission.key
        own_trace = self._ids.generate_trace_id() if key is None else trace_of(key)
        return record_of(
            report,
            SpanIds(
                format_trace_id(caller.trace_id if caller is not None else own_trace),
                format_span_id(self._ids.generate_span_id() if key is None else key),
                format_span_id(caller.span_id) if caller is not None else None,
                self._processor is not None and admission.exported,
            ),
        )

    def send(self, record: SpanRecord) -> None:
        """Queue a span for export, if it is exported. Returns at once; ``fate`` is called with the outcome."""
        queue = self._processor
        if queue is None or not record.ids.exported:
            return
        span = self._encoded(record, queue)
        if span is not None:
            queue.put(span)
        else:
            self._unfit(record.ids.span_id)

    def _encoded(self, record: SpanRecord, queue: SpanQueue) -> EncodedItem | None:
        """The span, without its series where that does not fit; None, and it is counted, where it cannot be sent."""
        try:
            with_series = record.series is None or self._series_fits(series_size(record.series), queue)
            span = encode_record(record, self._group, self._limits, self._backends, with_series=with_series)
        except Exception as error:
            drop(self._counters, record.ids.span_id, error)
            return None
        if span.size > SPAN_BYTES:
            drop(self._counters, span.id, span.size)
            return None
        return span

    def _series_fits(self, size: int, queue: SpanQueue) -> bool:
        """Whether a series of so many bytes is sent; otherwise it is counted as lost."""
        if size > SPAN_BYTES:
            self._counters.count_loss(Loss.SERIES_TOO_LARGE)
            return False
        if not queue.room_for(size):
            self._counters.count_loss(Loss.SERIES_QUEUE_FULL)
            return False
        return True

    def shutdown(self, timeout_s: float) -> None:
        """Deliver what is queued, for at most this long, even if the endpoint hangs."""
        if self._processor is not None:
            self._processor.close(timeout_s)


def span_limits(env: Mapping[str, str] = os.environ) -> SpanLimits:
    """The limits that the ``OTEL_*`` variables set; no limit of events by default.

    The SDK's 128 events a span would cut the start off a series of more than 32,768 tokens.
    """
    return SpanLimits() if given(env, "OTEL_SPAN_EVENT_COUNT_LIMIT") else SpanLimits(max_events=SpanLimits.UNSET)
