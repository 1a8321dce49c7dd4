"""Spans that wait for their delivery: bounded in number and in bytes, exported in batches by a thread of its own."""

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
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.delivery import Delivery, Fate
from corevital_otel.encoding import EncodedSpan, encode_readable
from corevital_otel.errors import SettingsError

QUEUE_BYTES: Final = 64 << 20
"""Of encoded spans that wait or are being sent."""
SERIES_BYTES: Final = 48 << 20
"""From here on a span waits without its series, so that there is room for others."""
_QUEUE: Final = 2048
_BATCH: Final = 512
_DELAY_MS: Final = 5000
"""The SDK's own defaults; ``OTEL_BSP_MAX_QUEUE_SIZE``, ``_MAX_EXPORT_BATCH_SIZE`` and ``_SCHEDULE_DELAY`` override."""


class SpanQueue(SpanProcessor):
    """Takes spans in, never blocks, and has them delivered. Refuses a span when full, and counts it.

    A forked child has an empty one.

    Args:
        delivery: where they go.
        counters: takes ``corevital.telemetry.dropped``.
        fate: hears of the spans that are refused.

    Raises:
        SettingsError: an ``OTEL_BSP_*`` variable has a value we cannot follow.
    """

    def __init__(self, delivery: Delivery, counters: Counters, fate: Fate) -> None:
        self._bound = _positive("OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE)
        self._batch = min(_positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _BATCH), self._bound)
        self._delay_s = _positive("OTEL_BSP_SCHEDULE_DELAY", _DELAY_MS) / 1000
        if os.environ.get("OTEL_BSP_EXPORT_TIMEOUT", "").strip():
            delivery.patience_s = min(_positive("OTEL_BSP_EXPORT_TIMEOUT", 1) / 1000, delivery.patience_s)
        self._delivery = delivery
        self._counters = counters
        self._fate = fate
        self._start()
        again = weakref.WeakMethod(self._start)
        os.register_at_fork(after_in_child=lambda: (restart := again()) and restart())

    def _start(self) -> None:
        self._queue: deque[EncodedSpan] = deque()
        self._pending: dict[str, int] = {}
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._stopping = self._flushing = self._given_up = False
        self._changed = threading.Condition()
        self._delivery.settled = self._settle

    def room_for(self, series_bytes: int) -> bool:
        """Whether a span may have a series of so many bytes."""
        return self._bytes + series_bytes <= SERIES_BYTES

    def put(self, span: EncodedSpan) -> bool:
        """Queue a span, if there is room."""
        with self._changed:
            room = len(self._pending) < self._bound and self._bytes + span.size <= QUEUE_BYTES
            if room and not self._stopping:
                self._pending[span.id] = span.size
                self._bytes += span.size
                self._queue.append(span)
                if len(self._queue) in (1, self._batch):
                    self._changed.notify_all()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="corevital-spans", daemon=True)
                    self._thread.start()
                return True
        self._counters.add(names.DROPPED, what="span", why="shutdown" if self._stopping else "queue_full")
        self._fate([span.id], False)
        return False

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span of another maker, encoded."""
        own = span.get_span_context()
        if own is None or not own.trace_flags.sampled:
            return
        try:
            encoded = encode_readable(span)
        except Exception as error:
            drop(self._counters, f"{own.span_id:016x}", error)
            return
        self.put(encoded)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Deliver what waits. False where that takes longer."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._pending, timeout_millis / 1000)
            self._flushing = False
            return done

    def close(self, timeout_s: float) -> None:
        """Deliver what waits, without pauses, for at most this long; what is left then is lost."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._delivery.hurry()
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

    def _settle(self, span_ids: Sequence[str]) -> list[str]:
        """These are done. Returns those that are not counted as lost already."""
        with self._changed:
            found = []
            for span_id in span_ids:
                if (size := self._pending.pop(span_id, None)) is not None:
                    self._bytes -= size
                    found.append(span_id)
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
                swallow("the delivery of spans")

    def _next(self) -> list[EncodedSpan]:
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


def drop(counters: Counters, span_id: str, cause: Exception | int) -> None:
    """Count a span that cannot be sent, and name the first one.

    Args:
        counters: takes ``corevital.telemetry.dropped``.
        span_id: its id, fit to be logged.
        cause: why it cannot be encoded, or its size in bytes, which is too large.
    """
    too_large = isinstance(cause, int)
    counters.add(names.DROPPED, what="span", why="too_large" if too_large else "unencodable")
    warn_once(
        f"span:{too_large}",
        "span %s cannot be sent (%s): it is dropped alone; further ones are only counted",
        span_id,
        f"{cause} bytes" if too_large else f"{type(cause).__name__}: {printable(cause, 200)}",
    )


def _positive(variable: str, default: int) -> int:
    value = os.environ.get(variable, "").strip() or str(default)
    if not value.isdecimal() or not 1 <= len(value) <= 12 or int(value) < 1:
        raise SettingsError(f"{variable}={value!r} is not allowed: use a whole number from 1 up")
    return int(value)
