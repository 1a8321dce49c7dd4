"""Delivery of spans: a bounded queue, requests of a size that servers take, patience with a server that is down.

What the SDK gives up after one timeout is tried again here, with growing pauses and never before the server asked for
it, while its queue holds what comes meanwhile. Every span's fate is told once: delivered, or not.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import format_span_id

from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.errors import SettingsError
from corevital_otel.otlp import Verdict
from corevital_otel.overheard import overheard

PATIENCE_S: Final = 300.0
"""How long a server may be down before spans are given up, seconds; the queue fills earlier under load."""

_PAUSES_S: Final = (1.0, 30.0)
"""First and longest pause between tries of ours, each of which may hold several of the SDK's."""
_QUEUE: Final = 2048
_BATCH: Final = 512
"""The SDK's own defaults; ``OTEL_BSP_MAX_QUEUE_SIZE`` and ``OTEL_BSP_MAX_EXPORT_BATCH_SIZE`` go before them."""
_REQUEST_BYTES: Final = 3_000_000
"""Of a request to the collector, about: gRPC servers take 4 MiB unless told otherwise, and refuse more as a whole."""
_SPAN_BYTES: Final = 4_096
_EVENT_BYTES: Final = 12_000
"""Generous estimates: about 60 attributes; 256 tokens of four doubles, 11 bytes each."""
_jitter: Final = random.SystemRandom()
_logger = logging.getLogger("corevital.otlp")

Fate = Callable[[Sequence[str], bool], None]
"""Hears of spans by their ids in hex, and whether they were delivered."""


class Exporter(Protocol):
    """What is needed of :class:`corevital_otel.otlp.ListeningExporter`."""

    inner: SpanExporter
    verdict: Verdict

    def begin(self) -> None:
        """An export begins."""


class CountingExporter(SpanExporter):
    """Exports, counts, is patient; warns once when delivery fails, once when it is back.

    Args:
        exporter: sends one request.
        where: the endpoint, for the log.
        counters: takes ``corevital.telemetry.exported`` and ``…dropped``.
        fate: hears what became of each span.
        patience_s: how long a server that is down is waited for.
    """

    def __init__(
        self,
        exporter: Exporter,
        where: str,
        counters: Counters,
        fate: Fate = lambda spans, delivered: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._exporter = exporter
        self._where = where
        self._counters = counters
        self._fate = fate
        self._patience_s = patience_s
        self._failing = False
        self._down_since: float | None = None
        self._pending: dict[str, None] = {}
        self._given_up = False
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def expect(self, span: ReadableSpan, bound: int) -> bool:
        """One more span wants to be exported. False, and it is counted as lost, where so many are on their way."""
        span_id = _id(span)
        with self._lock:
            if len(self._pending) < bound and not self._given_up:
                self._pending[span_id] = None
                return True
        self._counters.add(names.DROPPED, what="span", why="queue_full")
        self._fate([span_id], False)
        return False

    def hurry(self) -> None:
        """The end is near: what is queued gets one more try, without pauses."""
        self._stopping.set()

    def give_up(self) -> None:
        """The end has come: what is still on its way counts as lost."""
        with self._lock:
            left = list(self._pending)
            self._pending.clear()
            self._given_up = True
        if left:
            self._counters.add(names.DROPPED, len(left), what="span", why="shutdown")
            self._fate(left, False)
            _logger.warning("%d spans could not be delivered to %s before the end", len(left), self._where)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch, in requests that a collector takes; a failure is counted and never raised."""
        results = [self._deliver(request) for request in _requests(spans)]
        return SpanExportResult.SUCCESS if all(results) else SpanExportResult.FAILURE

    def _deliver(self, spans: Sequence[ReadableSpan]) -> bool:
        """Try until the server has decided, patience is over, or the end is near."""
        pause = _PAUSES_S[0]
        while True:
            delivered, cause = self._try(spans)
            verdict = self._exporter.verdict
            if delivered:
                self._succeeded(spans, verdict)
                return True
            self._warn(cause)
            now = time.monotonic()
            self._down_since = self._down_since if self._down_since is not None else now
            over = now - self._down_since + (verdict.retry_after_s or 0.0) >= self._patience_s
            if not verdict.transient or over or self._stopping.is_set():
                break
            self._stopping.wait(max(verdict.retry_after_s or 0.0, pause * _jitter.uniform(0.8, 1.2)))
            if self._stopping.is_set() and verdict.retry_after_s:
                break  # it has asked not to be asked yet
            pause = min(2 * pause, _PAUSES_S[1])
        self._failed(spans)
        return False

    def _try(self, spans: Sequence[ReadableSpan]) -> tuple[bool, str]:
        self._exporter.begin()
        with overheard("trace_exporter") as said:
            try:
                result = self._exporter.inner.export(spans)
            except Exception as error:
                result = SpanExportResult.FAILURE
                self._exporter.verdict = Verdict(transient=False)  # a fault, not an answer
                said.append(str(error))
        cause = self._exporter.verdict.message or "; ".join(dict.fromkeys(said))
        return result is SpanExportResult.SUCCESS, _in_one_line(cause or "it could not be reached in time")

    def _settled(self, spans: Sequence[ReadableSpan]) -> list[str]:
        """The ids of those that are not counted as lost already."""
        with self._lock:
            if self._given_up:
                return []
            ids = [_id(span) for span in spans]
            for span_id in ids:
                self._pending.pop(span_id, None)
            return ids

    def _succeeded(self, spans: Sequence[ReadableSpan], verdict: Verdict) -> None:
        self._down_since = None
        if self._failing:
            self._failing = False
            _logger.warning("spans are delivered to %s again", self._where)
        ids = self._settled(spans)
        rejected = min(verdict.rejected, len(ids))
        if rejected:
            self._counters.add(names.DROPPED, rejected, what="span", why="rejected")
            _logger.warning(
                "%s rejected %d of %d spans (%s): they are counted, and not sent again",
                self._where,
                rejected,
                len(ids),
                _in_one_line(verdict.message or "no reason given"),
            )
        if len(ids) > rejected:
            self._counters.add(names.EXPORTED, len(ids) - rejected, signal="traces")
        self._fate(ids, True)  # the specification forbids to send any of them again

    def _failed(self, spans: Sequence[ReadableSpan]) -> None:
        if ids := self._settled(spans):
            self._counters.add(names.DROPPED, len(ids), what="span", why="export_failed")
            self._fate(ids, False)

    def _warn(self, cause: str) -> None:
        if not self._failing:
            self._failing = True
            _logger.warning(
                "spans cannot be delivered to %s (%s): check OTEL_EXPORTER_OTLP_ENDPOINT and the collector; "
                "serving goes on, reports stay in the store, undelivered spans are counted",
                self._where,
                cause,
            )

    def shutdown(self) -> None:
        """Shut the exporter inside down."""
        self._exporter.inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the exporter inside."""
        return self._exporter.inner.force_flush(timeout_millis)


def _id(span: ReadableSpan) -> str:
    context = span.get_span_context()
    return format_span_id(context.span_id if context is not None else 0)


def _requests(spans: Sequence[ReadableSpan]) -> Iterator[list[ReadableSpan]]:
    """The spans of a batch in portions of one request each, at least one span in each."""
    portion: list[ReadableSpan] = []
    total = 0
    for span in spans:
        size = _SPAN_BYTES + _EVENT_BYTES * len(span.events) + _text_bytes(span)
        if portion and total + size > _REQUEST_BYTES:
            yield portion
            portion, total = [], 0
        portion.append(span)
        total += size
    if portion:
        yield portion


def _text_bytes(span: ReadableSpan) -> int:
    """Of long texts, which only captured content has: up to four bytes a character."""
    return sum(4 * len(value) for value in (span.attributes or {}).values() if isinstance(value, str))


class BoundedProcessor(BatchSpanProcessor):
    """A batch processor that refuses a span when full; the SDK's own drops the oldest one and counts nothing.

    Raises:
        SettingsError: an ``OTEL_BSP_*`` variable has a value we cannot follow.
    """

    def __init__(self, exporter: CountingExporter) -> None:
        self._bound = _positive("OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE)
        batch = min(_positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _BATCH), self._bound)
        super().__init__(exporter, max_queue_size=self._bound, max_export_batch_size=batch)
        self._counting = exporter

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span that has ended, if there is room."""
        if self._counting.expect(span, self._bound):
            super().on_end(span)


def _positive(variable: str, default: int) -> int:
    value = os.environ.get(variable, "").strip() or str(default)
    if not value.isdecimal() or int(value) < 1:
        raise SettingsError(f"{variable}={value!r} is not allowed: use a whole number from 1 up")
    return int(value)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())[:400]
