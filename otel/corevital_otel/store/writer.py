"""Writes reports into the store, in batches, from a thread of its own.

Each batch is one transaction in WAL mode: a process killed at any point leaves every committed row intact. What cannot
be written now (full disk, locked or unwritable file) is kept, within bounds, and tried again; the first failure is
said once, and everything lost is counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from corevital.guard import swallow
from corevital.log import about, warn_once
from corevital_otel import conventions as names
from corevital_otel.attributes import span_attributes
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.risk.baseline import WINDOW
from corevital_otel.spans import SpanIds
from corevital_otel.store import schema, series

_BATCH: Final = 500
_KEPT: Final = 20_000
"""Reports that may wait for the disk; beyond that the oldest are dropped and counted."""
_KEPT_BYTES: Final = 128 * 2**20
"""Memory they may take, about: long outputs with their series are worth far more than short ones."""
_RETRY_S: Final = 2.0
_PRUNE_EVERY_S: Final = 60.0
_PRUNE_ROWS: Final = 1000
"""Rows deleted in one transaction at most, so that pruning never holds the file for long."""
_PRUNE_SHARE: Final = 50
"""One row in so many is deleted at a time while the file is too large, so that it is not emptied by one step."""
_WAL_BYTES: Final = 16 * 2**20
"""What is left of the write-ahead log after a checkpoint, at most."""

_INSERT: Final = """
INSERT INTO reports (request_id, sequence, created_at_utc, model, finish_reason, prompt_tokens, output_tokens,
    risk_score, risk_level, risk_basis, trace_id, span_id, flags, summary, series, parent_span_id, start_ns, end_ns,
    export, resource_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (span_id) DO NOTHING
"""

_SETTLE: Final = "UPDATE reports SET export = ? WHERE span_id = ? AND export IS NOT NULL"

_FORGET: Final = """
DELETE FROM baseline WHERE id IN (
    SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY model, bucket ORDER BY id DESC) AS place FROM baseline)
    WHERE place > ?
)
"""

_ROW_FAULTS: Final = (
    ValueError,
    TypeError,
    OverflowError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.IntegrityError,
    sqlite3.DataError,
)
"""What a report raises that SQLite cannot take. Trying again would not help, and would hold up all others."""

_MENDS: Final = {
    "disk is full": "free the disk or lower COREVITAL_DB_MAX_MB",
    "locked": "end what holds it, or set COREVITAL_DB to another file",
    "not a database": "move it away, or set COREVITAL_DB to another file",
    "malformed": "move it away and restore a backup, or set COREVITAL_DB to another file",
}
"""What to do, by what SQLite says."""
_MEND: Final = "make it writable or set COREVITAL_DB to a path that is"

_logger = logging.getLogger("corevital.store")


class StoreWriter:
    """The one writer of this process; several processes may write the same file.

    Args:
        path: the file, or None: nothing is stored. Its folder is made.
        retention_days, max_mb: bounds the store prunes itself to, oldest first.
        counters: takes ``corevital.telemetry.dropped`` with ``what=report``.
        resource: attributes of the resource that the reports' spans are of, for spans that are sent later.
    """

    def __init__(
        self,
        path: Path | None,
        retention_days: float,
        max_mb: float,
        counters: Counters,
        resource: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = path
        self._resource = None if resource is None else json.dumps(dict(resource), sort_keys=True)
        self._retention = timedelta(days=retention_days)
        self._max_bytes = int(max_mb * 1024 * 1024)
        self._counters = counters
        self._waiting: deque[tuple[RequestReport, SpanIds]] = deque()
        self._waiting_bytes = 0
        self._learned: deque[tuple[str, str, tuple[float, ...]]] = deque(maxlen=_KEPT)
        self._fates: list[tuple[str, str]] = []  # what became of spans: export, span id
        self._writing: list[tuple[RequestReport, SpanIds]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._failing = False
        self._refused = False
        self._connection: sqlite3.Connection | None = None
        self._pruned_at = 0.0
        self._thread = threading.Thread(target=self._run, name="corevital-store", daemon=True)
        if path is not None:
            self._thread.start()

    @property
    def waiting(self) -> int:
        """Reports that are not written yet."""
        with self._changed:
            return len(self._waiting) + len(self._writing)

    def put(self, report: RequestReport, ids: SpanIds) -> None:
        """Take a report in; returns at once."""
        if self._path is None:
            return
        with self._changed:
            if self._refused:
                self._drop(1, "store_refused")
                return
            self._waiting.append((report, ids))
            self._waiting_bytes += _bytes(report)
            while len(self._waiting) > _KEPT or (self._waiting_bytes > _KEPT_BYTES and len(self._waiting) > 1):
                self._take()
                self._drop(1, "store_full")
            self._changed.notify()

    def learn(self, model: str, bucket: str, signals: Sequence[float]) -> None:
        """Keep what the basis ``baseline`` learns from a request; returns at once. Written with the next batch."""
        if self._path is None:
            return
        with self._changed:
            if not self._refused:
                self._learned.append((model, bucket, tuple(signals)))

    def settle(self, span_ids: Iterable[str], delivered: bool) -> None:
        """Spans of reports put before have been delivered, or given up; returns at once."""
        if self._path is None:
            return
        fate = "sent" if delivered else "undelivered"
        with self._changed:
            if not self._refused:
                self._fates += [(fate, span_id) for span_id in span_ids]
                del self._fates[:-_KEPT]  # for as long as nothing can be written
                self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Write what is waiting, for at most this long."""
        if self._path is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if left := self.waiting:
            self._drop(left, "store_unwritable")
            _logger.warning("%d reports could not be written to %s before the end", left, self._path)

    def _take(self) -> tuple[RequestReport, SpanIds]:
        oldest = self._waiting.popleft()
        self._waiting_bytes -= _bytes(oldest[0])
        return oldest

    def _drop(self, count: int, why: str) -> None:
        self._counters.add(names.DROPPED, count, what="report", why=why)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            self._disconnect()

    def _turn(self) -> bool:
        """Write one batch. False: the thread's work is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._fates or self._closing, timeout=_PRUNE_EVERY_S)
            self._writing = [self._take() for _ in range(min(_BATCH, len(self._waiting)))]
            # a span's fate is told after its report was put: where nothing else waits, its row is there by then
            fates = [] if self._waiting else self._fates
            self._fates = self._fates if self._waiting else []
            last_try = self._closing
        if self._attempt(fates):
            return not last_try or bool(self._waiting or self._fates)
        with self._changed:
            self._fates = fates + self._fates
            self._waiting.extendleft(reversed(self._writing))
            self._waiting_bytes += sum(_bytes(report) for report, _ in self._writing)
            self._writing = []
            if self._refused or last_try:  # tried since the end was called: the end is bounded
                return False
            self._changed.wait_for(lambda: self._closing, timeout=_RETRY_S)
        return True

    def _attempt(self, fates: list[tuple[str, str]]) -> bool:
        try:
            connection = self._open()
            if self._writing:
                self._insert(connection)
            if fates:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany(_SETTLE, fates)
            if self._learned:
                self._keep_learned(connection)
            self._prune(connection)
        except schema.SchemaError as error:
            self._refuse(error)
            return False
        except (sqlite3.Error, OSError) as error:
            self._fail(error)
            return False
        except Exception:  # a fault of ours: nobody else would empty the queue
            swallow("the store")
            self._disconnect()
            return False
        if self._failing:
            self._failing = False
            _logger.warning("the store %s can be written again", self._path)
        return True

    def _insert(self, connection: sqlite3.Connection) -> None:
        faulty: tuple[RequestReport, SpanIds, Exception] | None = None
        lost = 0
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            resource_id = self._resource_id(connection)
            for report, ids in self._writing:
                try:
                    connection.execute(_INSERT, (*_row(report, ids), resource_id))
                except _ROW_FAULTS as error:
                    lost += 1
                    faulty = (report, ids, error)
        with self._changed:
            self._writing = []
        if faulty is not None:
            self._drop(lost, "store_row")
            report, ids, cause = faulty
            request_id = report.admitted.request_id
            message = "the store cannot hold report %r (%s); such reports are counted, others kept"
            with about(request_id, ids.trace_id):
                warn_once("store_row", message, request_id, cause)

    def _keep_learned(self, connection: sqlite3.Connection) -> None:
        with self._changed:
            learned = list(self._learned)
        rows = [
            (model, bucket, json.dumps([value if math.isfinite(value) else None for value in signals]))
            for model, bucket, signals in learned
        ]
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO baseline (model, bucket, signals) VALUES (?, ?, ?)", rows)
        with self._changed:
            for _ in learned:
                self._learned.popleft()

    def _resource_id(self, connection: sqlite3.Connection) -> int | None:
        if self._resource is None:
            return None
        connection.execute("INSERT OR IGNORE INTO resources (attributes) VALUES (?)", (self._resource,))
        found = connection.execute("SELECT id FROM resources WHERE attributes = ?", (self._resource,)).fetchone()
        return int(found[0])

    def _refuse(self, error: schema.SchemaError) -> None:
        with self._changed:
            self._refused = True
            lost = len(self._waiting) + len(self._writing)
            self._waiting.clear()
            self._fates.clear()
            self._writing = []
        self._drop(lost, "store_refused")
        _logger.warning("the store %s is not used until a restart, serving goes on: %s", self._path, error)

    def _fail(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            mend = next((mend for said, mend in _MENDS.items() if said in str(error)), _MEND)
            _logger.warning(
                "the store %s cannot be written (%s): %s; serving goes on, up to %d reports wait",
                self._path,
                error,
                mend,
                _KEPT,
            )
        self._disconnect()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            assert self._path is not None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=5.0, isolation_level=None)
            try:
                ours = schema.check(connection)  # first of all: a file of another program stays as it is
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect in a new file only
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
                # NORMAL: a killed process loses nothing; only a power cut may lose the last commits, never the file
                connection.execute("PRAGMA synchronous = NORMAL")
                if not ours:
                    schema.create(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _prune(self, connection: sqlite3.Connection) -> None:
        now = time.monotonic()
        if self._pruned_at and now - self._pruned_at < _PRUNE_EVERY_S:
            return
        self._pruned_at = now
        prune(connection, self._retention, self._max_bytes)
        connection.execute(_FORGET, (WINDOW,))


def prune(connection: sqlite3.Connection, retention: timedelta | None, max_bytes: int | None) -> int:
    """Delete the oldest rows until the store is within the bounds there are. Returns how many went."""
    oldest = "DELETE FROM reports WHERE id IN (SELECT id FROM reports {} ORDER BY created_at_utc, id LIMIT ?)"
    deleted = 0
    if retention is not None:
        values = (iso(datetime.now(timezone.utc) - retention), _PRUNE_ROWS)
        while (gone := connection.execute(oldest.format("WHERE created_at_utc < ?"), values).rowcount) > 0:
            deleted += gone
    while max_bytes is not None and _used_bytes(connection) > max_bytes:
        rows = connection.execute("SELECT count(*) FROM reports").fetchone()[0]
        step = min(max(rows // _PRUNE_SHARE, 1), _PRUNE_ROWS)
        gone = connection.execute(oldest.format(""), (step,)).rowcount
        if gone == 0:
            break
        deleted += gone
    if deleted:
        connection.executescript("PRAGMA incremental_vacuum")  # one page a step: execute() would take one step
    return deleted


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def iso(moment: datetime) -> str:
    """UTC in ISO 8601 with milliseconds, which sorts as text."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _bytes(report: RequestReport) -> int:
    """Memory a waiting report takes, about: measured."""
    series_tokens = 0 if report.series is None else len(report.series)
    return 1024 + 42 * len(report.outcome.token_ids) + 16 * series_tokens


def _row(report: RequestReport, ids: SpanIds) -> tuple[Any, ...]:
    admitted, outcome, risk = report.admitted, report.outcome, report.risk
    return (
        admitted.request_id,
        admitted.sequence,
        iso(datetime.fromtimestamp(outcome.end_ns / 1e9, timezone.utc)),
        admitted.model,
        outcome.reason,
        admitted.prompt_tokens,
        len(outcome.token_ids),
        risk.score,
        risk.level,
        risk.basis,
        ids.trace_id,
        ids.span_id,
        json.dumps(report.health.flags),
        json.dumps(span_attributes(report)),
        None if report.series is None else series.pack(report.series),
        ids.parent_id,
        admitted.arrival_ns,
        max(outcome.end_ns, admitted.arrival_ns),
        "queued" if ids.exported else None,
    )
