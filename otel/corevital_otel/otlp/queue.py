"""Spans and log records that wait for delivery: bounded in number and bytes, each kind exported by its own thread."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Final

from opentelemetry import context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from corevital.guard import swallow
from corevital.log import warn_once
from corevital.text import printable
from corevital_otel.counters import Counters
from corevital_otel.otlp.delivery import Delivery, Fate
from corevital_otel.otlp.encoding import EncodedItem, encode_readable
from corevital_otel.otlp.kinds import SPANS, Kind
from corevital_otel.otlp.variables import count

SERIES_BYTES: Final = 48 << 20
"""Beyond this a span is queued without its series, to leave room for others."""
_QUEUE: Final = 2048
_BATCH: Final = 512
"""The SDK's own defaults; ``OTEL_BSP_MAX_QUEUE_SIZE`` and ``_MAX_EXPORT_BATCH_SIZE`` override, ``OTEL_BLRP_…`` for log
records."""


class Queue:
    """Queues items of one kind for delivery without blocking. Drops an item when full, and counts it.

    A forked child has an empty one.

    Args:
        delivery: where they go.
        counters: counts losses.
        fate: called with the ids of dropped items.

    Raises:
        SettingsError: a variable of the kind's processor has a wrong value.
    """

    def __init__(self, delivery: Delivery, counters: Counters, fate: Fate) -> None:
        self._kind = kind = delivery.kind
        prefix = f"OTEL_{kind.processor}"
        self._bound = count(f"{prefix}_MAX_QUEUE_SIZE", _QUEUE)
        self._batch = min(count(f"{prefix}_MAX_EXPORT_BATCH_SIZE", _BATCH), self._bound)
        self._delay_s = count(f"{prefix}_SCHEDULE_DELAY", kind.delay_ms) / 1000
        longest_ms = int(delivery.patience_s * 1000)
        delivery.patience_s = min(count(f"{prefix}_EXPORT_TIMEOUT", longest_ms), longest_ms) / 1000
        self._delivery = delivery
        self._counters = counters
        self._fate = fate
        self._start()
        again = weakref.WeakMethod(self._start)
        os.register_at_fork(after_in_child=lambda: (restart := again()) and restart())

    def _start(self) -> None:
        self._queue: deque[EncodedItem] = deque()
        self._pending: dict[str, int] = {}
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._stopping = self._flushing = self._given_up = False
        self._changed = threading.Condition()
        self._delivery.finished = self._finished

    def put(self, item: EncodedItem) -> bool:
        """Queue an item, if there is room."""
        with self._changed:
            room = len(self._pending) < self._bound and self._bytes + item.size <= self._kind.queue_bytes
            if room and not self._stopping:
                self._pending[item.id] = item.size
                self._bytes += item.size
                self._queue.append(item)
                if len(self._queue) in (1, self._batch):
                    self._changed.notify_all()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name=f"corevital-{self._kind.label}", daemon=True)
                    self._thread.start()
                return True
        if not self._fate([item.id], False):
            self._counters.count_loss(self._kind.shutdown if self._stopping else self._kind.queue_full)
        return False

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Deliver what waits. False where that takes longer."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._pending, timeout_millis / 1000)
            self._flushing = False
            return done

    def stop(self) -> None:
        """Take nothing more, and deliver what waits without pauses. Returns at once."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._delivery.hurry()

    def close(self, timeout_s: float) -> None:
        """Deliver what waits, without pauses, for at most this long; what is left then is lost."""
        self.stop()
        if self._thread is not None:
            self._thread.join(timeout_s)
        with self._changed:
            self._given_up = True
            left = list(self._pending)
            self._pending.clear()
            self._queue.clear()
            self._bytes = 0
        self._delivery.give_up(left)

    def shutdown(self) -> None:
        """See :meth:`close`."""
        self.close(30.0)

    def _finished(self, ids: Sequence[str]) -> list[str]:
        """These items are done. Returns those not counted as lost already."""
        with self._changed:
            found = []
            for each in ids:
                if (size := self._pending.pop(each, None)) is not None:
                    self._bytes -= size
                    found.append(each)
            if not self._pending:
                self._changed.notify_all()
            return found

    def _run(self) -> None:
        context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # our own requests are not traced
        while batch := self._next():
            try:
                self._delivery.export(batch)
            except Exception:
                self._delivery.failed(batch)
                swallow(f"the delivery of {self._kind.label}")

    def _next(self) -> list[EncodedItem]:
        """The next batch, when it is full or has waited long enough; empty at the end."""
        with self._changed:
            while not self._queue and not self._stopping:
                self._changed.wait()
            deadline = time.monotonic() + self._delay_s
            while len(self._queue) < self._batch and not (self._stopping or self._flushing):
                if (left_s := deadline - time.monotonic()) <= 0:
                    break
                self._changed.wait(left_s)
            return [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]


class SpanQueue(Queue, SpanProcessor):
    """The queue of spans, ours and those of other instrumentations."""

    def room_for(self, series_bytes: int) -> bool:
        """Whether a span may have a series of so many bytes."""
        return self._bytes + series_bytes <= SERIES_BYTES

    def on_end(self, span: ReadableSpan) -> None:
        """Encode and queue a span of another instrumentation."""
        own = span.get_span_context()
        if own is None or not own.trace_flags.sampled:
            return
        try:
            encoded = encode_readable(span)
        except Exception as error:
            drop(self._counters, f"{own.span_id:016x}", error)
            return
        self.put(encoded)


def drop(counters: Counters, span_id: str, cause: Exception | int, kind: Kind = SPANS) -> None:
    """Count an item that cannot be sent, and name the first one.

    Args:
        counters: counts it.
        span_id: its id, fit to be logged.
        cause: why it cannot be encoded, or its size in bytes, which is too large.
        kind: what it is.
    """
    too_large = isinstance(cause, int)
    counters.count_loss(kind.too_large if too_large else kind.unencodable)
    warn_once(
        f"{kind.label}:{too_large}",
        kind.dropped,
        span_id,
        f"{cause} bytes" if too_large else f"{type(cause).__name__}: {printable(cause, 200)}",
    )
