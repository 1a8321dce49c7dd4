"""Delivery of spans: requests of a size that backends take, patience with one that is down, and one fate for each span.

A request that may pass later is tried again, with growing pauses and never before the backend asked for it. One that is
refused for what may be a part of it is divided, so that a span that a backend does not bear costs no other.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from corevital_otel import conventions as names
from corevital_otel.answers import Verdict
from corevital_otel.counters import Counters
from corevital_otel.encoding import EncodedSpan, Group

PATIENCE_S: Final = 300.0
"""How long a backend may be down before spans are given up, seconds; the queue fills earlier under load."""
REQUEST_BYTES: Final = 3_000_000
"""Of a request, encoded: gRPC servers take 4 MiB by default, and refuse more as a whole."""
SPAN_BYTES: Final = 4_000_000
"""Of a span; a larger one is in no request."""

_PAUSES_S: Final = (1.0, 30.0)
"""First and longest pause between tries."""
_SILENCE_S: Final = 60.0
"""Between two lines on what a backend rejected."""
_LEAST_REQUEST_BYTES: Final = 64 << 10
_PARTS: Final = 256
"""Most requests that one refused request is divided into, in turn."""
_HOPELESS: Final = 14
"""So many parts refused, and none taken: the backend refuses everything."""
_DEEP: Final = 6
"""So many divisions before others than the first part are tried."""
_HOPELESS_AGAIN: Final = 2
"""The same where it has refused everything before."""
_jitter: Final = random.SystemRandom()
_logger = logging.getLogger("corevital.otlp")

Fate = Callable[[Sequence[str], bool], None]
"""Hears of spans by their ids in hex, and whether they were delivered."""


class Exporter(Protocol):
    """What is needed of :class:`corevital_otel.otlp.ListeningExporter`."""

    def send(self, spans: Sequence[EncodedSpan]) -> Verdict:
        """Send one request, once."""


class Delivery:
    """Exports, counts, is patient; warns once when delivery fails, once when it is back.

    Args:
        exporter: sends one request.
        where: the endpoint, for the log.
        counters: takes ``corevital.telemetry.exported`` and ``…dropped``.
        fate: hears what became of each span.
        patience_s: how long a backend that is down is waited for.
    """

    def __init__(
        self,
        exporter: Exporter,
        where: str,
        counters: Counters,
        fate: Fate = lambda spans, delivered: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.patience_s = patience_s
        self.settled: Callable[[Sequence[str]], Sequence[str]] = lambda ids: ids
        """Is given the ids of spans that are done; returns those that are not counted as lost already."""
        self.last = Verdict()
        """On the last request that was sent."""
        self._exporter = exporter
        self._where = where
        self._counters = counters
        self._fate = fate
        self._failing = False
        self._refusing = False
        self._refuses_all = False
        self._rejected_again_at = 0.0
        self._down_since: float | None = None
        self._request_bytes = REQUEST_BYTES
        self._stopping = threading.Event()

    def hurry(self) -> None:
        """The end is near: what is queued gets one more try, without pauses."""
        self._stopping.set()

    def give_up(self, span_ids: Sequence[str]) -> None:
        """The end has come, and these are still on their way: they are lost."""
        if span_ids:
            self._counters.add(names.DROPPED, len(span_ids), what="span", why="shutdown")
            self._fate(span_ids, False)
            _logger.warning("%d spans could not be delivered to %s before the end", len(span_ids), self._where)

    def export(self, spans: Sequence[EncodedSpan]) -> None:
        """Deliver a batch, in requests that a backend takes; a failure is counted and never raised."""
        for request in _requests(spans, self._request_bytes):
            verdict = self._deliver(request)
            if verdict.delivered:
                continue
            if verdict.divisible and len(request) > 1 and not self._stopping.is_set():
                self._divide(request, verdict)
            else:
                self._warn(verdict.message)
                self.failed(request)

    def failed(self, spans: Sequence[EncodedSpan]) -> None:
        """These could not be delivered."""
        if ids := self.settled([span.id for span in spans]):
            self._counters.add(names.DROPPED, len(ids), what="span", why="export_failed")
            self._fate(ids, False)

    def _deliver(self, spans: Sequence[EncodedSpan]) -> Verdict:
        """Try until the backend has decided, patience is over, or the end is near. A failure is not counted yet."""
        pause = _PAUSES_S[0]
        while True:
            verdict = self.last = self._exporter.send(spans)
            if verdict.delivered:
                self._succeeded(spans, verdict)
                return verdict
            if not verdict.transient:
                return verdict
            self._warn(verdict.message)
            now = time.monotonic()
            self._down_since = self._down_since if self._down_since is not None else now
            over = now - self._down_since + (verdict.retry_after_s or 0.0) > self.patience_s
            if over or self._stopping.is_set():
                return verdict
            self._stopping.wait(max(verdict.retry_after_s or 0.0, pause * _jitter.uniform(0.8, 1.2)))
            if self._stopping.is_set() and verdict.retry_after_s:
                return verdict  # it has asked not to be asked yet
            pause = min(2 * pause, _PAUSES_S[1])

    def _divide(self, spans: Sequence[EncodedSpan], verdict: Verdict) -> None:
        """Send the halves of a refused request, then the halves of one that is refused too, down to a single span.

        ``_PARTS`` bounds how many requests that takes. While nothing has been taken, parts from all over are tried
        before one is divided further; a backend that takes none of them is left alone.
        """
        unsent = _halves(spans)  # the last one is next
        refused: list[Sequence[EncodedSpan]] = []  # to be divided once anything is taken
        too_large = verdict.too_large
        tries = taken = lost = largest = 0
        hopeless = _HOPELESS_AGAIN if self._refuses_all else _HOPELESS
        while unsent or (refused and tries < hopeless):
            unsent = unsent or _halves(refused.pop(0))
            part = unsent.pop()
            if tries >= _PARTS or (not taken and tries >= hopeless) or self._stopping.is_set():
                lost += len(part)
                self.failed(part)
                continue
            tries += 1
            verdict = self._deliver(part)
            if verdict.delivered:
                taken += len(part)
                largest = max(largest, sum(span.size for span in part))
                unsent += [half for one in refused for half in _halves(one)]
                refused = []
            elif verdict.divisible and len(part) > 1:
                if taken or tries < _DEEP:
                    unsent += _halves(part)
                else:
                    refused.append(part)
            else:
                lost += len(part)
                self.failed(part)
        for part in refused:
            lost += len(part)
            self.failed(part)
        self._refuses_all = not taken
        if not taken:
            self._warn(verdict.message)
            return
        if too_large:
            self._request_bytes = max(min(largest, self._request_bytes), _LEAST_REQUEST_BYTES)
        if lost and not self._refusing:
            self._refusing = True
            _logger.warning(
                "%s refused %d of %d spans for good (%s): they are counted, and stay in the store; this is logged once",
                self._where,
                lost,
                len(spans),
                verdict.message or "no reason given",
            )

    def _succeeded(self, spans: Sequence[EncodedSpan], verdict: Verdict) -> None:
        self._down_since = None
        self._refuses_all = False
        if self._failing:
            self._failing = False
            _logger.warning("spans are delivered to %s again", self._where)
        ids = self.settled([span.id for span in spans])
        rejected = min(verdict.rejected, len(ids))
        if rejected:
            self._counters.add(names.DROPPED, rejected, what="span", why="rejected")
        if rejected and time.monotonic() >= self._rejected_again_at:
            self._rejected_again_at = time.monotonic() + _SILENCE_S
            _logger.warning(
                "%s rejected %d of %d spans (%s): they are counted, and not sent again",
                self._where,
                rejected,
                len(ids),
                verdict.message or "no reason given",
            )
        if len(ids) > rejected:
            self._counters.add(names.EXPORTED, len(ids) - rejected, signal="traces")
        if ids:
            self._fate(ids, True)  # the specification forbids to send any of them again

    def _warn(self, cause: str) -> None:
        if not self._failing:
            self._failing = True
            _logger.warning(
                "spans cannot be delivered to %s (%s): check OTEL_EXPORTER_OTLP_ENDPOINT and the collector; "
                "serving goes on, reports stay in the store, undelivered spans are counted",
                self._where,
                cause or "it could not be reached in time",
            )


def _halves(spans: Sequence[EncodedSpan]) -> list[Sequence[EncodedSpan]]:
    middle = len(spans) // 2
    return [spans[middle:], spans[:middle]]


def _requests(spans: Sequence[EncodedSpan], most_bytes: int) -> Iterator[list[EncodedSpan]]:
    """The spans of a batch in portions of one request each, at least one span in each."""
    portion: list[EncodedSpan] = []
    groups: set[Group] = set()
    total = 0
    for span in spans:
        size = span.size + (0 if span.group in groups else span.group.size)
        if portion and total + size > most_bytes:
            yield portion
            portion, groups, total = [], set(), 0
            size = span.size + span.group.size
        portion.append(span)
        groups.add(span.group)
        total += size
    if portion:
        yield portion
