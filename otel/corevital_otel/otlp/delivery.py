"""Delivery of spans and log records: requests of a size that backends accept, patience with a backend that is down,
one fate for each item.

A request that may succeed later is retried, with growing pauses and never before the time the backend asked for. One
that may be refused because of a part of it is divided, so that an item that the backend refuses costs no other. A
backend that does not take log records at all is left alone for some minutes.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.otlp.answers import Verdict
from corevital_otel.otlp.encoding import EncodedItem, Group
from corevital_otel.otlp.kinds import SPANS, Kind

PATIENCE_S: Final = 300.0
"""How long a backend may be down before items are given up, seconds; the queue fills earlier under load."""
REQUEST_BYTES: Final = 3_000_000
"""Most bytes of an encoded request: gRPC servers accept 4 MiB by default, and refuse all of a larger one."""
SPAN_BYTES: Final = 4_000_000
"""Most bytes of a span or log record; a larger one is not sent."""

_PAUSES_S: Final = (1.0, 30.0)
"""First and longest pause between tries."""
_SILENCE_S: Final = 60.0
"""Between two lines on what a backend rejected."""
_LEAST_REQUEST_BYTES: Final = 64 << 10
_PARTS: Final = 256
"""Most requests that one refused request is divided into, in turn."""
_HOPELESS: Final = 14
"""After so many refused parts and none accepted, the backend refuses everything."""
_DEEP: Final = 6
"""So many divisions before others than the first part are tried."""
_HOPELESS_AGAIN: Final = 2
"""The same where it has refused everything before."""
_UNSUPPORTED_S: Final = 300.0
"""How long a backend that does not take a signal is not asked again, seconds."""
_jitter: Final = random.SystemRandom()
_logger = logging.getLogger("corevital.otlp")

Fate = Callable[[Sequence[str], bool], "int | None"]
"""Called with the ids of items, in hex, and whether they were delivered. Returns how many of those that were not are
kept elsewhere, to be sent later: they are not lost. None stands for 0."""


class Exporter(Protocol):
    """The part used of :class:`corevital_otel.otlp.exporter.ListeningExporter`."""

    def send(self, items: Sequence[EncodedItem]) -> Verdict:
        """Send one request, once."""


class Delivery:
    """Exports, counts, is patient; warns once when delivery fails and once when it works again.

    Args:
        exporter: sends one request.
        where: the endpoint, for the log.
        counters: counts deliveries and losses.
        fate: called with the outcome of each item.
        patience_s: how long to wait for a backend that is down.
        kind: what it delivers.
    """

    def __init__(
        self,
        exporter: Exporter,
        where: str,
        counters: Counters,
        fate: Fate = lambda spans, delivered: None,
        patience_s: float = PATIENCE_S,
        kind: Kind = SPANS,
    ) -> None:
        self.kind = kind
        self.patience_s = patience_s
        self.finished: Callable[[Sequence[str]], Sequence[str]] = lambda ids: ids
        """Takes the ids of items that are done; returns those not counted as lost already."""
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
        self._asked_again_at = 0.0  # where the backend does not take this signal
        self._request_bytes = REQUEST_BYTES
        self._stopping = threading.Event()

    def hurry(self) -> None:
        """The server stops: what is queued gets one more try, without pauses."""
        self._stopping.set()

    def give_up(self, ids: Sequence[str]) -> None:
        """The server has stopped, and these items are still on their way: they are lost."""
        if ids:
            self._counters.count_loss(self.kind.shutdown, len(ids) - (self._fate(ids, False) or 0))
            _logger.warning(self.kind.left, len(ids), self._where)

    def export(self, items: Sequence[EncodedItem]) -> None:
        """Deliver a batch, in requests that a backend accepts; a failure is counted and never raised."""
        for request in _requests(items, self._request_bytes):
            if time.monotonic() < self._asked_again_at:
                self.failed(request)
                continue
            verdict = self._deliver(request)
            if verdict.delivered:
                continue
            if verdict.divisible and len(request) > 1 and not self._stopping.is_set():
                self._divide(request, verdict)
            else:
                if verdict.unsupported and not self.kind.essential:
                    self._asked_again_at = time.monotonic() + _UNSUPPORTED_S
                self._warn(verdict.message)
                self.failed(request)

    def failed(self, items: Sequence[EncodedItem]) -> None:
        """These could not be delivered."""
        if ids := self.finished([item.id for item in items]):
            self._counters.count_loss(self.kind.export_failed, len(ids) - (self._fate(ids, False) or 0))

    def _deliver(self, items: Sequence[EncodedItem]) -> Verdict:
        """Try until the backend has decided, patience is over, or the server stops. A failure is not counted yet."""
        pause = _PAUSES_S[0]
        while True:
            verdict = self.last = self._exporter.send(items)
            if verdict.delivered:
                self._succeeded(items, verdict)
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
                return verdict  # the backend asked for a later retry
            pause = min(2 * pause, _PAUSES_S[1])

    def _divide(self, items: Sequence[EncodedItem], verdict: Verdict) -> None:
        """Send the halves of a refused request, then the halves of one that is refused too, down to a single item.

        ``_PARTS`` bounds how many requests that takes. While none is accepted, parts from all over are tried
        before one is divided further; a backend that accepts none is not tried further.
        """
        unsent = _halves(items)  # the last one is next
        refused: list[Sequence[EncodedItem]] = []  # to be divided once anything is taken
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
                largest = max(largest, sum(item.size for item in part))
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
            _logger.warning(self.kind.refused, self._where, lost, len(items), verdict.message or "no reason given")

    def _succeeded(self, items: Sequence[EncodedItem], verdict: Verdict) -> None:
        self._down_since = None
        self._refuses_all = False
        if self._failing:
            self._failing = False
            _logger.warning(self.kind.again, self._where)
        ids = self.finished([item.id for item in items])
        rejected = min(verdict.rejected, len(ids))
        self._counters.count_loss(self.kind.rejected, rejected)
        if rejected and time.monotonic() >= self._rejected_again_at:
            self._rejected_again_at = time.monotonic() + _SILENCE_S
            _logger.warning(self.kind.partly, self._where, rejected, len(ids), verdict.message or "no reason given")
        if len(ids) > rejected:
            self._counters.add(names.EXPORTED, len(ids) - rejected, signal=self.kind.label)
        if ids:
            self._fate(ids, True)  # the specification forbids sending any of them again

    def _warn(self, cause: str) -> None:
        if not self._failing:
            self._failing = True
            _logger.warning(self.kind.failing, self._where, cause or "it could not be reached in time")


def _halves(items: Sequence[EncodedItem]) -> list[Sequence[EncodedItem]]:
    middle = len(items) // 2
    return [items[middle:], items[:middle]]


def _requests(items: Sequence[EncodedItem], most_bytes: int) -> Iterator[list[EncodedItem]]:
    """The items of a batch in portions of one request each, at least one in each."""
    portion: list[EncodedItem] = []
    groups: set[Group] = set()
    total = 0
    for item in items:
        size = item.size + (0 if item.group in groups else item.group.size)
        if portion and total + size > most_bytes:
            yield portion
            portion, groups, total = [], set(), 0
            size = item.size + item.group.size
        portion.append(item)
        groups.add(item.group)
        total += size
    if portion:
        yield portion
