"""Sends spans that wait in the store, of this server and of ones that have ended, beside those that are new.

With ``COREVITAL_DB_RESEND=1`` the store is the queue: a span that the exporter gives up stays ``queued`` in its row, as
one does whose server was killed. A thread with a connection of its own sends the oldest first, with long pauses, so
that it costs an engine's process next to nothing and delays no new span. It gives up what is too old or too much.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path
from typing import Final

from opentelemetry import context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

from corevital.guard import swallow
from corevital.log import warn_once
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.otlp.destination import Destination
from corevital_otel.otlp.kinds import STORED_SPANS
from corevital_otel.service.resend import Resender
from corevital_otel.settings import Settings
from corevital_otel.spans import backends
from corevital_otel.store.backlog import Backlog
from corevital_otel.store.files import StoreError
from corevital_otel.store.ledger import Ledger
from corevital_otel.store.outbox import BusyError, UnsentSpan
from corevital_otel.store.writer import StoreWriter

_FIRST_S: Final = 5.0
"""After the start, seconds: an engine is busy then."""
_EVERY_S: Final = 30.0
"""Between two looks at the store, and after a backend was down."""
_REFUSED_S: Final = 300.0
"""After a backend has refused everything."""
_AGAIN_S: Final = 3600.0
"""After a backend has refused one span."""
_MOST_REFUSED: Final = 10_000
"""Refused spans that are remembered."""
_BOUND_EVERY_S: Final = 300.0
"""Between two looks at how much waits, and for how long."""
_BATCH: Final = 64
_SHARE: Final = 0.02
"""Share of one CPU that it takes while it sends, about."""
_LONGEST_PAUSE_S: Final = 5.0

_logger = logging.getLogger("corevital.otlp")


class Redelivery:
    """Sends what waits, from a thread.

    Args:
        settings: the server's; :attr:`Settings.resends` is true.
        where: the destination.
        store: the server's own; it has a ledger.
        counters: counts deliveries, and spans that are given up.
    """

    def __init__(self, settings: Settings, where: Destination, store: StoreWriter, counters: Counters) -> None:
        self._settings = settings
        self._where = where
        self._store = store
        self._counters = counters
        self._sender: Resender | None = None
        self._unnoted: list[str] = []  # sent, and the store could not note it
        self._refused: dict[str, float] = {}  # until when a span is left alone
        self._bounded_at = -math.inf
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="corevital-redelivery", daemon=True)

    def start(self) -> None:
        """Start sending. Returns at once."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stop, after the request that is being sent. What is left waits for the next start."""
        self._stopping.set()
        if self._sender is not None:
            self._sender.hurry()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # our own requests are not traced
        pause_s = _FIRST_S
        while not self._stopping.wait(pause_s):
            pause_s = self._look()
        if self._sender is not None:
            self._sender.close()

    def _look(self) -> float:
        """Send what waits. Returns how long to pause, seconds. Never raises."""
        path, ledger = self._settings.db, self._store.ledger
        if path is None or ledger is None or self._store.failing or not path.is_file():
            return _EVERY_S
        try:
            return self._empty(path, ledger)
        except BusyError:
            return _EVERY_S
        except StoreError as error:
            warn_once("redelivery", "spans that wait in the store are not sent for now: %s", error)
        except Exception:
            swallow("the delivery of spans from the store")
            return _REFUSED_S
        return _EVERY_S

    def _empty(self, path: Path, ledger: Ledger) -> float:
        sent = 0
        try:
            with Backlog(path, ledger, self._store.senders) as backlog:
                self._note(backlog, [])
                self._bound(backlog)
                begun = time.thread_time()
                for batch in backlog.batches(_BATCH):
                    taken, pause_s = self._send(backlog, [span for span in batch if self._is_due(span.span_id)])
                    sent += taken
                    if pause_s or self._stopping.wait(min((time.thread_time() - begun) / _SHARE, _LONGEST_PAUSE_S)):
                        return pause_s
                    begun = time.thread_time()
                return _EVERY_S
        finally:
            if sent:
                _logger.info("%d spans that waited in the store were sent to %s", sent, self._where.endpoint)

    def _bound(self, backlog: Backlog) -> None:
        """Give up what is too old or too much, at the first look and from time to time: each row that waits is read."""
        if time.monotonic() - self._bounded_at < _BOUND_EVERY_S:
            return
        self._bounded_at = time.monotonic()
        self._counters.count_loss(Loss.SPAN_TOO_OLD, backlog.give_up_older(self._settings.db_resend_hours * 3600.0))
        most = int(self._settings.db_resend_max_mb * 2**20)
        self._counters.count_loss(Loss.SPAN_BACKLOG_FULL, backlog.give_up_beyond(most))

    def _send(self, backlog: Backlog, batch: list[UnsentSpan]) -> tuple[int, float]:
        """Send a batch. Returns how many were taken, and how long to pause before others are tried; 0: not at all."""
        self._counters.count_loss(Loss.SPAN_UNENCODABLE, backlog.give_up(backlog.unreadable))
        backlog.unreadable.clear()
        if not batch:
            return 0, 0.0
        if self._sender is None:
            chosen = backends.wanted(self._settings.otel_profile, self._where)
            self._sender = Resender(self._where, chosen, 0.0, STORED_SPANS)
        sender = self._sender
        exported, rejected = self._counted(sender)
        taken = set(sender.send(batch))
        now_exported, now_rejected = self._counted(sender)
        self._counters.add(names.EXPORTED, now_exported - exported, signal=STORED_SPANS.label)
        self._counters.count_loss(Loss.SPAN_REJECTED, now_rejected - rejected)
        self._note(backlog, taken)
        unfit = set(sender.unfit)
        self._counters.count_loss(Loss.SPAN_UNENCODABLE, backlog.give_up(sender.unfit))
        left = [span.span_id for span in batch if span.span_id not in taken and span.row not in unfit]
        if not left:
            return len(taken), 0.0
        if sender.last.transient:
            return len(taken), max(sender.last.retry_after_s or 0.0, _EVERY_S)
        if sender.hopeless:
            return len(taken), _REFUSED_S
        if len(self._refused) + len(left) > _MOST_REFUSED:
            self._refused.clear()
        self._refused |= dict.fromkeys(left, time.monotonic() + _AGAIN_S)
        return len(taken), 0.0

    def _note(self, backlog: Backlog, taken: set[str] | list[str]) -> None:
        """Note that spans were sent, and those before of which that failed: nothing is sent until it is noted.

        Raises:
            StoreError: the store cannot be written.
        """
        self._unnoted += taken
        if self._unnoted:
            backlog.sent(self._unnoted)
            self._unnoted = []

    def _is_due(self, span_id: str) -> bool:
        return self._refused.get(span_id, 0.0) <= time.monotonic()

    @staticmethod
    def _counted(sender: Resender) -> tuple[int, int]:
        return sender.counters.get(names.EXPORTED), sender.counters.lost(Loss.SPAN_REJECTED)
