"""Writes reports into the store, in batches, from one thread.

Each batch is one transaction in WAL mode: a process killed at any point leaves every committed row intact. What cannot
be written now (full disk, locked or unwritable file) is kept, within bounds, and retried; the first failure is logged
once, and every loss is counted. Between two batches there is at most one short step of upkeep.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from corevital.guard import swallow
from corevital.log import about, warn_once
from corevital.text import cut, printable
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.risk.baseline import WINDOW
from corevital_otel.spans.record import SpanRecord
from corevital_otel.store import schema, statements
from corevital_otel.store.clock import DAY_S, AgeClock
from corevital_otel.store.content import Content
from corevital_otel.store.files import StoreFile
from corevital_otel.store.ledger import Ledger
from corevital_otel.store.rows import Row, to_json
from corevital_otel.store.senders import Senders, join
from corevital_otel.store.upkeep import STEP_S, Upkeep
from corevital_otel.store.waiting import Waiting

_BATCH: Final = 500
_BATCH_BYTES: Final = 16 * 2**20
"""Memory of the rows of one transaction, about: it holds the file, and the log grows by it."""
_FATES: Final = 2000
_GATHER_S: Final = 0.05
"""How long a first report waits for others: a transaction a report would cost several times as much."""
_KEPT: Final = 20_000
"""Reports that may wait for the disk; beyond that the oldest are dropped and counted."""
_KEPT_BYTES: Final = 128 * 2**20
"""Memory they may take, about: long outputs with their series are worth far more than short ones."""
_RETRY_S: Final = 2.0
_LEARNED_EVERY_S: Final = 5.0
_BUCKETS: Final = 512
"""Models and temperature buckets whose lessons wait at most."""
_LAST_UPKEEP_S: Final = 5.0
"""How long upkeep goes on at the end."""
_QUIET_S: Final = 60.0
"""Between two warnings that the file was moved."""
_WAL_BYTES: Final = 16 * 2**20
"""What is left of the write-ahead log after a checkpoint, at most."""
_WAL_PAGES: Final = 4000
"""Pages in the log from which on they are copied to the file: fewer copies than by SQLite's 1000."""
_CACHE_KIB: Final = 16 * 1024

_FIXES: Final = {
    "is older than ours": "run `corevital db migrate`",
    "disk is full": "free the disk or lower COREVITAL_DB_MAX_MB",
    "locked": "stop the program that holds it, or set COREVITAL_DB to another file",
    "not a database": "move it away, or set COREVITAL_DB to another file",
    "malformed": "move it away and restore a backup, or set COREVITAL_DB to another file",
    "not a file": "move it away, or set COREVITAL_DB to another file",
}
"""The fix, by SQLite's message."""
_FIX: Final = "make it writable or set COREVITAL_DB to a path that is"

_logger = logging.getLogger("corevital.store")


class _MovedError(Exception):
    """The open file is not the one at the store's path any more."""


class StoreWriter:
    """The one writer of this process; several processes may write the same file.

    Args:
        path: the file, or None: nothing is stored. Its folder is made.
        retention_days, max_mb: bounds the store prunes itself to, oldest first.
        counters: counts lost reports and fates.
        resource: attributes of the resource that the reports' spans are of, for spans that are sent later.
        keeps_spans: spans that the exporter gives up wait in the store, to be sent from there.

    Attributes:
        ledger: what of them is under way; None: they do not wait.
        senders: this server among those that share the store; None: not open yet, or its file system has no locks.
    """

    def __init__(
        self,
        path: Path | None,
        retention_days: float,
        max_mb: float,
        counters: Counters,
        resource: Mapping[str, Any] | None = None,
        *,
        keeps_spans: bool = False,
    ) -> None:
        self._path = None if path is None else path.absolute()  # a server may change its folder
        self._resource = None if resource is None else to_json(dict(sorted(resource.items())))
        self._retention_s = retention_days * DAY_S
        self._max_bytes = int(max_mb * 1024 * 1024)
        self._counters = counters
        self.ledger = Ledger() if keeps_spans and path is not None else None
        self.senders: Senders | None = None
        self._waiting = Waiting(self._row_lost)
        self.taken_in = 0
        """Rows that came in so far; the last :attr:`waiting` of them may still be lost with the process."""
        self._learned: dict[tuple[str, str], deque[tuple[float, ...]]] = {}
        self._learned_at = time.monotonic()
        self._changed = threading.Condition()
        self._closing = False
        self._upkeep_until = math.inf
        self._failing = False
        self._unfinished = Loss.REPORT_STORE_UNWRITABLE  # how a report is lost that waits at the end
        self._refused = False
        self._connection: sqlite3.Connection | None = None
        self._moved_at = -math.inf
        self._busy = False
        if self._path is not None:
            self._clock = AgeClock(self._path, self._retention_s)
            counted = None if self.ledger is None else counters
            self._upkeep = Upkeep(self._path, self._max_bytes, self._clock.oldest, counters=counted)
            self._thread = threading.Thread(target=self._run, name="corevital-store", daemon=True)
            self._thread.start()

    @property
    def waiting(self) -> int:
        """Reports that are not written yet."""
        with self._changed:
            return len(self._waiting) + len(self._waiting.taken)

    @property
    def failing(self) -> bool:
        """Whether the last write failed, or the store is refused. Any thread may ask."""
        return self._failing or self._refused

    def put(self, record: SpanRecord, content: Content | None = None) -> None:
        """Take a report in, as its span's record, and its text where that is stored; returns at once."""
        if self._path is None:
            return
        try:
            row = Row(record, content)
        except statements.ROW_ERRORS as error:
            self._unfit(1, record.request_id, record.ids.trace_id, error)
            return
        with self._changed:
            if self._refused:
                self._counters.count_loss(Loss.REPORT_STORE_REFUSED)
                return
            if self.ledger is not None and row.export is not None:
                self.ledger.begin(row.span_id)
            gone = self._waiting.put(row, _KEPT, _KEPT_BYTES)
            self.taken_in += 1
            if len(self._waiting) in (1, _BATCH):
                self._changed.notify()
        self._counters.count_loss(Loss.REPORT_STORE_FULL, gone)

    def learn(self, model: str, bucket: str, signals: Sequence[float]) -> None:
        """Queue what the basis ``baseline`` learns from a request; returns at once. It is written every few seconds."""
        if self._path is None or self._refused:
            return
        with self._changed:
            key = cut(model), cut(bucket)
            if key not in self._learned and len(self._learned) >= _BUCKETS:
                self._learned.pop(next(iter(self._learned)))
            self._learned.setdefault(key, deque(maxlen=WINDOW)).append(tuple(signals))

    def settle(self, span_ids: Iterable[str], delivered: bool, *, unfit: bool = False) -> int:
        """Note that spans of earlier reports were delivered, or given up; returns at once.

        Args:
            span_ids: their ids, in hex.
            delivered: whether they were.
            unfit: they never can be.

        Returns:
            How many of those that were not wait in the store, to be sent from there.
        """
        if self._path is None or self._refused:
            return 0
        kept: list[str] = []
        if self.ledger is not None and not delivered and not unfit:
            kept, span_ids = self.ledger.failed(span_ids)
        with self._changed:
            lost = self._waiting.settle(span_ids, "sent" if delivered else "undelivered")
            if 0 < self._waiting.fates <= _FATES:
                self._changed.notify()
        self._counters.count_loss(Loss.FATE_STORE_FULL, lost)
        return len(kept)

    def close(self, timeout_s: float) -> None:
        """Write what is waiting, for at most this long."""
        if self._path is None:
            return
        with self._changed:
            self._closing = True
            self._upkeep_until = time.monotonic() + min(timeout_s / 2, _LAST_UPKEEP_S)
            self._changed.notify()
        self._thread.join(timeout_s)
        if left := self.waiting:
            self._counters.count_loss(self._unfinished, left)
            _logger.warning("%d reports could not be written to %s before the end", left, self._path)
            with self._changed:
                for row in self._waiting.rows():
                    self._row_lost(row)
        self._counters.count_loss(Loss.FATE_STORE_UNWRITABLE, self._waiting.fates)

    def _row_lost(self, row: Row) -> None:
        """A row will not be written. Count its span if that was to wait in it."""
        if self.ledger is not None and row.export == "queued" and self.ledger.row_lost(row.span_id):
            self._counters.count_loss(Loss.SPAN_NOT_STORED)

    def _unfit(self, count: int, request_id: object, trace_id: str, cause: Exception) -> None:
        """Count reports that the store cannot hold; log the first."""
        self._counters.count_loss(Loss.REPORT_STORE_ROW, count)
        shown = printable(request_id, 256)
        with about(shown, printable(trace_id, 64)):
            message = "the store cannot hold report %r (%s); such reports are counted, others kept"
            warn_once("store_row", message, shown, printable(cause, 200))

    def _run(self) -> None:
        try:
            self._attempt({}, upkeep=False)  # a file that cannot be used is reported now, and a new one has its tables
            while not self._refused and self._turn():
                pass
        finally:
            self._disconnect()
            if self.senders is not None:
                self.senders.close()

    def _turn(self) -> bool:
        """Write one batch, and take one step of upkeep. False: the thread's work is over."""
        with self._changed:
            if self._busy:  # other processes' turn
                self._changed.wait_for(lambda: self._closing or len(self._waiting) >= _BATCH, STEP_S)
            else:
                due_s = self._upkeep.due()
                self._changed.wait_for(lambda: self._waiting or self._waiting.fates or self._closing, due_s)
                self._changed.wait_for(lambda: self._closing or len(self._waiting) >= _BATCH, _GATHER_S)
            self._waiting.take(_BATCH, _BATCH_BYTES)
            fates = self._waiting.take_fates(_FATES)
            last_try = self._closing
        if self._attempt(fates):
            left = not last_try or self._waiting or self._waiting.fates
            return bool(left) or (self._busy and time.monotonic() < self._upkeep_until)
        with self._changed:
            self._waiting.give_back(fates)
            if self._refused or last_try:  # tried since close(): the end is bounded
                return False
            self._changed.wait_for(lambda: self._closing, timeout=_RETRY_S)
        return True

    def _attempt(self, fates: dict[str, str], *, upkeep: bool = True) -> bool:
        """Whether all taken rows are written, or wait again because the file was moved."""
        try:
            connection = self._open()
            if self._waiting.taken:
                self._insert(connection)
            if fates:
                statements.settle(connection, fates)
                if self.ledger is not None:
                    self.ledger.noted(fates)
            self._keep_learned(connection)
            self._busy = upkeep and self._upkeep.step(connection)
        except _MovedError:
            with self._changed:
                self._waiting.give_back(fates)
            return True
        except schema.OlderSchemaError as error:  # somebody will migrate it, perhaps while this server runs
            self._unfinished = Loss.REPORT_STORE_REFUSED
            self._fail(error.cause)
            return False
        except schema.SchemaError as error:
            self._refuse(error)
            return False
        except (sqlite3.Error, OSError) as error:
            self._fail(error)
            return False
        except Exception:  # an error of ours: the thread must go on, to empty the queue
            swallow("the store")
            self._disconnect()
            return False
        if self._failing:
            self._failing, self._unfinished = False, Loss.REPORT_STORE_UNWRITABLE
            _logger.warning("the store %s can be written again", self._path)
        return True

    def _insert(self, connection: sqlite3.Connection) -> None:
        resource = None if self._resource is None else statements.resource_id(connection, self._resource)
        rows: list[Row] = []
        values: list[tuple[Any, ...]] = []
        faulty: list[tuple[Row, Exception]] = []
        settled: list[str] = []
        for row in self._waiting.taken:
            if row.export not in (None, "queued"):
                settled.append(row.span_id)
            try:
                values.append(row.encode(resource))
                rows.append(row)
            except Exception as error:  # of any kind: it would hold up all others again at each try
                faulty.append((row, error))
        faulty += [(rows[place], error) for place, error in statements.insert(connection, values)]
        if self._moved():  # meanwhile: these rows would be lost
            self._disconnect()
            raise _MovedError
        with self._changed:
            self._waiting.written()
        if self.ledger is not None:
            self.ledger.noted(settled)
            for row, _ in faulty:
                self._row_lost(row)
        if faulty:
            row, cause = faulty[0]
            self._unfit(len(faulty), row.request_id, row.trace_id, cause)

    def _keep_learned(self, connection: sqlite3.Connection) -> None:
        now = time.monotonic()
        with self._changed:
            if not self._learned or (now - self._learned_at < _LEARNED_EVERY_S and not self._closing):
                return
            learned, self._learned = self._learned, {}
        try:
            statements.learn(connection, learned)
        except BaseException:
            with self._changed:
                for key, later in self._learned.items():
                    learned.setdefault(key, deque(maxlen=WINDOW)).extend(later)
                self._learned = learned
            raise
        self._learned_at = now
        for model, bucket in learned:
            self._upkeep.learned(model, bucket)

    def _refuse(self, error: schema.SchemaError) -> None:
        self._disconnect()
        with self._changed:
            self._refused = True
            lost = self._waiting.clear()
            for row in lost:
                self._row_lost(row)
        self._counters.count_loss(Loss.REPORT_STORE_REFUSED, len(lost))
        _logger.warning("the store %s is not used until a restart, requests are unaffected: %s", self._path, error)

    def _fail(self, error: Exception | str) -> None:
        if not self._failing:
            self._failing = True
            fix = next((fix for cause, fix in _FIXES.items() if cause in str(error)), _FIX)
            _logger.warning(
                "the store %s cannot be written (%s): %s; requests are unaffected, up to %d reports wait",
                self._path,
                error,
                fix,
                _KEPT,
            )
        self._disconnect()

    def _open(self) -> sqlite3.Connection:
        """The connection to the file that is at the store's path now."""
        assert self._path is not None  # noqa: S101 - for the types
        if self._connection is not None and self._moved():
            self._disconnect()
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = StoreFile(self._path)
            connection = sqlite3.connect(self._path, timeout=5.0, isolation_level=None)
            try:
                ours = schema.check(connection)  # first: another program's file must not be changed
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect in a new file only
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
                connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                connection.execute("PRAGMA secure_delete = FAST")  # else each deleted page goes through the log
                # NORMAL: a killed process loses nothing; only a power cut may lose the last commits, never the file
                connection.execute("PRAGMA synchronous = NORMAL")
                if not ours:
                    schema.create(connection)
                if self.ledger is not None and self._resource is not None:  # before the first row
                    self.senders = join(self._path, statements.resource_id(connection, self._resource), self.senders)
                self._clock.begin(connection)
                self._file.opened()
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _moved(self) -> bool:
        """Whether the open file is no longer the one at the path. Logs it."""
        what = self._file.moved()
        if not what:
            return False
        now = time.monotonic()
        if now - self._moved_at > _QUIET_S:
            self._moved_at = now
            _logger.warning(
                "the store %s was %s while it was in use: further rows go into the file that is there now, or a new "
                "one; stop the servers before you move or remove a store",
                self._path,
                what,
            )
        return True

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
