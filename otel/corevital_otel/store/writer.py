"""Writes reports into the store, in batches, from a thread of its own.

Each batch is one transaction in WAL mode: a process killed at any point leaves every committed row intact. What cannot
be written now (full disk, locked or unwritable file) is kept, within a bound, and tried again; the first failure is
said once, and everything lost is counted.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections import deque
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from corevital_otel import conventions as names
from corevital_otel.attributes import span_attributes
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans import SpanIds
from corevital_otel.store import schema, series

_BATCH: Final = 500
_KEPT: Final = 20_000
"""Reports that may wait for the disk; beyond that the oldest are dropped and counted."""
_RETRY_S: Final = 2.0
_PRUNE_EVERY_S: Final = 60.0
_PRUNE_ROWS: Final = 1000
"""Rows deleted in one transaction at most, so that pruning never holds the file for long."""
_PRUNE_SHARE: Final = 50
"""One row in so many is deleted at a time while the file is too large, so that it is not emptied by one step."""

_INSERT: Final = """
INSERT INTO reports (request_id, sequence, created_at_utc, model, finish_reason, prompt_tokens, output_tokens,
    risk_score, risk_level, risk_basis, trace_id, span_id, flags, summary, series)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (span_id) DO NOTHING
"""

_logger = logging.getLogger("corevital.store")


class StoreWriter:
    """The one writer of this process; several processes may write the same file.

    Args:
        path: the file, or None: nothing is stored. Its folder is made.
        retention_days, max_mb: bounds the store prunes itself to, oldest first.
        counters: takes ``corevital.telemetry.dropped`` with ``what=report``.
    """

    def __init__(self, path: Path | None, retention_days: float, max_mb: float, counters: Counters) -> None:
        self._path = path
        self._retention = timedelta(days=retention_days)
        self._max_bytes = int(max_mb * 1024 * 1024)
        self._counters = counters
        self._waiting: deque[tuple[RequestReport, SpanIds]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failing = False
        self._refused = False
        self._connection: sqlite3.Connection | None = None
        self._pruned_at = 0.0
        self._thread = threading.Thread(target=self._run, name="corevital-store", daemon=True)
        if path is not None:
            self._thread.start()

    def put(self, report: RequestReport, ids: SpanIds) -> None:
        """Take a report in; returns at once."""
        if self._path is None or self._refused:
            if self._refused:
                self._counters.add(names.DROPPED, what="report", why="store_refused")
            return
        with self._changed:
            self._waiting.append((report, ids))
            if len(self._waiting) > _KEPT:
                self._waiting.popleft()
                self._counters.add(names.DROPPED, what="report", why="store_full")
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Write what is waiting, for at most this long."""
        if self._path is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._waiting:
            self._counters.add(names.DROPPED, len(self._waiting), what="report", why="store_unwritable")
            _logger.warning("%d reports could not be written to %s before the end", len(self._waiting), self._path)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing, timeout=_PRUNE_EVERY_S)
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                last_try = self._closing
            written = self._attempt(batch)
            if not written and not self._refused:
                with self._changed:
                    self._waiting.extendleft(reversed(batch))
                    if last_try:
                        break  # tried since the end was called: the end is bounded
                    self._changed.wait_for(lambda: self._closing, timeout=_RETRY_S)
            elif last_try and not self._waiting:
                break
        if self._connection is not None:
            self._connection.close()

    def _attempt(self, batch: list[tuple[RequestReport, SpanIds]]) -> bool:
        try:
            connection = self._open()
            if batch:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany(_INSERT, [_row(report, ids) for report, ids in batch])
            self._prune(connection)
        except schema.SchemaError as error:
            self._refused = True
            self._counters.add(names.DROPPED, len(batch), what="report", why="store_refused")
            _logger.warning("the store %s is not used, serving goes on: %s", self._path, error)
            return False
        except (sqlite3.Error, OSError) as error:
            if not self._failing:
                self._failing = True
                _logger.warning(
                    "the store %s cannot be written (%s): free the disk or set COREVITAL_DB to a writable path; "
                    "serving goes on, up to %d reports wait",
                    self._path,
                    error,
                    _KEPT,
                )
            self._reset()
            return False
        if self._failing:
            self._failing = False
            _logger.warning("the store %s can be written again", self._path)
        return True

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            assert self._path is not None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=5.0, isolation_level=None)
            try:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect in a new file only
                connection.execute("PRAGMA journal_mode = WAL")
                # NORMAL: a killed process loses nothing; only a power cut may lose the last commits, never the file
                connection.execute("PRAGMA synchronous = NORMAL")
                schema.prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _reset(self) -> None:
        if self._connection is not None:
            try:
                self._connection.close()
            finally:
                self._connection = None

    def _prune(self, connection: sqlite3.Connection) -> None:
        now = time.monotonic()
        if self._pruned_at and now - self._pruned_at < _PRUNE_EVERY_S:
            return
        self._pruned_at = now
        prune(connection, self._retention, self._max_bytes)


def prune(connection: sqlite3.Connection, retention: timedelta, max_bytes: int) -> int:
    """Delete the oldest rows until the store is within both bounds. Returns how many went."""
    cutoff = iso(datetime.now(timezone.utc) - retention)
    oldest = "DELETE FROM reports WHERE id IN (SELECT id FROM reports {} ORDER BY created_at_utc, id LIMIT ?)"
    deleted = 0
    while (gone := connection.execute(oldest.format("WHERE created_at_utc < ?"), (cutoff, _PRUNE_ROWS)).rowcount) > 0:
        deleted += gone
    while _used_bytes(connection) > max_bytes:
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
    )
