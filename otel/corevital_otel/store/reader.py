"""Finds reports in the store. Opens the file read-only and never creates one."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from corevital_otel.report import Series
from corevital_otel.store import schema
from corevital_otel.store.series import unpack
from corevital_otel.store.writer import iso

_COLUMNS: Final = (
    "request_id, sequence, created_at_utc, model, finish_reason, prompt_tokens, output_tokens, "
    "risk_score, risk_level, risk_basis, trace_id, span_id, flags, summary"
)


class StoreError(RuntimeError):
    """The store cannot be read. Its text is one line that names the cause and the mend."""


@dataclass(frozen=True, slots=True)
class StoredReport:
    """One row; ``flags`` and ``summary`` decoded, ``series`` only where it was asked for and kept."""

    request_id: str
    sequence: int
    created_at_utc: str
    model: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    risk_score: float | None
    risk_level: str
    risk_basis: str
    trace_id: str
    span_id: str
    flags: list[str]
    summary: dict[str, Any]
    series: Series | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values, by the store's column names; unknown values of a series are null."""
        row = asdict(self)
        if self.series is not None:
            row["series"] = {
                name: [None if math.isnan(value) else value for value in getattr(self.series, name).tolist()]
                for name in ("entropy", "surprisal", "margin", "topk_mass")
            }
        return row


class StoreReader:
    """Queries on one file.

    Args:
        path: the store's file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def list_reports(
        self,
        *,
        since: timedelta | None = None,
        risk_above: float | None = None,
        flag: str | None = None,
        model: str | None = None,
        limit: int = 50,
    ) -> list[StoredReport]:
        """Reports that meet all conditions given, newest first, without their series.

        Raises:
            StoreError: the file is missing or unreadable.
        """
        conditions: list[str] = []
        values: list[Any] = []
        if since is not None:
            conditions.append("created_at_utc >= ?")
            values.append(iso(datetime.now(timezone.utc) - since))
        if risk_above is not None:
            conditions.append("risk_score > ?")
            values.append(risk_above)
        if flag is not None:
            conditions.append("EXISTS (SELECT 1 FROM json_each(flags) WHERE value = ?)")
            values.append(flag)
        if model is not None:
            conditions.append("model = ?")
            values.append(model)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        query = f"SELECT {_COLUMNS}, NULL FROM reports {where} ORDER BY created_at_utc DESC, id DESC LIMIT ?"
        return self._read(query, [*values, limit])

    def get(self, request_id: str) -> list[StoredReport]:
        """All sequences of the requests with this id (clients may repeat one), else of those whose id begins so.

        Their series are decoded.

        Raises:
            StoreError: the file is missing or unreadable.
        """
        query = f"SELECT {_COLUMNS}, series FROM reports WHERE {{}} ORDER BY request_id, sequence, id LIMIT 1000"
        return self._read(query.format("request_id = ?"), [request_id]) or self._read(
            query.format("substr(request_id, 1, length(?1)) = ?1"), [request_id]
        )

    def count(self) -> int:
        """How many reports there are."""
        with self._connection() as connection:
            return int(connection.execute("SELECT count(*) FROM reports").fetchone()[0])

    def undelivered(self) -> int:
        """How many spans no collector has taken, and nobody tries to send any more."""
        with self._connection() as connection:
            return int(connection.execute("SELECT count(*) FROM reports WHERE export = 'undelivered'").fetchone()[0])

    def learned(self) -> list[tuple[str, str, list[float]]]:
        """What the basis ``baseline`` has learned from, oldest first: model, temperature bucket, signals."""
        with self._connection() as connection:
            rows = connection.execute("SELECT model, bucket, signals FROM baseline ORDER BY id").fetchall()
        return [
            (model, bucket, [math.nan if value is None else float(value) for value in json.loads(signals)])
            for model, bucket, signals in rows
        ]

    def _read(self, query: str, values: list[Any]) -> list[StoredReport]:
        with self._connection() as connection:
            rows = connection.execute(query, values).fetchall()
        return [_report(row) for row in rows]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if not self._path.is_file():
            raise StoreError(f"there is no store at {self._path}: serve some requests first, or name it with --db")
        try:
            connection = sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)
        except sqlite3.Error as error:
            raise StoreError(f"the store {self._path} cannot be opened: {error}") from None
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:  # a server has made the file and not written to it yet
                raise StoreError(f"the store {self._path} is empty: serve some requests first")
            if version != schema.VERSION:
                mend = "upgrade corevital" if version > schema.VERSION else "run `corevital db migrate`"
                raise StoreError(
                    f"the store {self._path} has schema {version}, this version reads {schema.VERSION}: "
                    f"{mend}, or name another file with --db"
                )
            yield connection
        except sqlite3.Error as error:
            raise StoreError(f"the store {self._path} cannot be read: {error}") from None
        finally:
            connection.close()


def _report(row: tuple[Any, ...]) -> StoredReport:
    *columns, flags, summary, series = row
    fields = [name.strip() for name in _COLUMNS.split(",")][:-2]
    return StoredReport(
        **dict(zip(fields, columns, strict=True)),
        flags=json.loads(flags),
        summary=json.loads(summary),
        series=unpack(series) if series else None,
    )
