"""``corevital db``: the store's upkeep."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import typer

from corevital_otel import profiles
from corevital_otel.cli import CommandError
from corevital_otel.cli.common import duration, store_path
from corevital_otel.destination import Destination, destination
from corevital_otel.resend import Resender
from corevital_otel.settings import load
from corevital_otel.store import outbox, schema
from corevital_otel.store.reader import StoreError
from corevital_otel.store.writer import prune as prune_store

_BATCH: Final = 200
_PROGRESS_S: Final = 10.0
"""Between two lines on how far an export is."""


def migrate(db: Path | None) -> None:
    """See :func:`corevital_otel.cli.db_migrate`."""
    path = _existing(db)
    with _opened(path, "migrated") as connection:
        before, after = schema.migrate(connection)
    done = "has that schema already" if before == after else f"migrated from schema {before}"
    typer.echo(f"{path}: schema {after}, {done}")


def prune(db: Path | None, older_than: str | None, max_mb: float | None) -> None:
    """See :func:`corevital_otel.cli.db_prune`."""
    retention = None if older_than is None else duration(older_than, "--older-than")
    if retention is None and max_mb is None:
        settings = load()
        retention, max_mb = timedelta(days=settings.db_retention_days), settings.db_max_mb
    path = _existing(db)
    with _opened(path, "pruned") as connection:
        _refuse_empty(connection, path)
        gone = prune_store(connection, retention, None if max_mb is None else int(max_mb * 2**20))
        typer.echo(f"{path}: {gone} requests deleted, {_content(connection)} left")


def backup(db: Path | None, target: Path) -> None:
    """See :func:`corevital_otel.cli.db_backup`."""
    path = _existing(db)
    if target.exists():
        raise CommandError(f"{target} exists: name a file that does not, or move it away")
    partial = target.with_name(f"{target.name}.partial")  # whoever finds the target finds all of it
    try:
        with _opened(path, "backed up") as connection, closing(sqlite3.connect(partial)) as copy:
            _refuse_empty(connection, path)
            connection.backup(copy)  # in one step: a consistent copy, beside whom servers go on writing
            copy.execute("PRAGMA journal_mode = DELETE")  # a file alone, without a log beside it
            if (found := copy.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise CommandError(f"the store {path} is damaged: {found}; restore an earlier backup")
            content = _content(copy)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    typer.echo(f"{target}: {content} backed up from {path}")


@contextmanager
def _opened(path: Path, done: str) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as connection:
            yield connection
    except (schema.SchemaError, sqlite3.Error) as error:
        raise CommandError(f"the store {path} cannot be {done}: {error}") from None


def _refuse_empty(connection: sqlite3.Connection, path: Path) -> None:
    if not schema.check(connection):
        raise CommandError(f"the store {path} is empty: name another with --db")


def _content(connection: sqlite3.Connection) -> str:
    rows, size = connection.execute(
        "SELECT (SELECT count(*) FROM reports), page_count * page_size FROM pragma_page_count, pragma_page_size"
    ).fetchone()
    return f"{rows} requests ({size / 2**20:.1f} MiB)"


def export(db: Path | None, *, dry_run: bool) -> None:
    """See :func:`corevital_otel.cli.db_export`."""
    path = _existing(db)
    where = destination()
    if where is None and not dry_run:
        raise CommandError("there is nowhere to send spans to: set OTEL_EXPORTER_OTLP_ENDPOINT")
    try:
        with outbox.Outbox(path) as box:
            waiting = box.count()
            if dry_run or not waiting:
                typer.echo(f"{waiting} spans wait to be sent")
                return
            assert where is not None
            sender = Resender(where, _profiles(where))
            sent, shown_at = 0, time.monotonic()
            try:
                for batch in box.batches(_BATCH):
                    taken = sender.send(batch)
                    box.sent(taken)
                    sent += len(taken)
                    if sender.hopeless:
                        break
                    if time.monotonic() - shown_at >= _PROGRESS_S:
                        shown_at = time.monotonic()
                        typer.echo(f"{sent} of {waiting} spans sent", err=True)
            finally:
                sender.close()
    except StoreError as error:
        raise CommandError(str(error)) from None
    typer.echo(f"{sent} spans sent to {where.endpoint}")
    if sender.damaged and sent + sender.damaged >= waiting:
        raise CommandError(
            f"{sender.damaged} spans in {path} are damaged and were skipped: there is no way to send them"
        )
    if sent < waiting:
        raise CommandError(
            f"{waiting - sent} spans could not be delivered to {where.endpoint} and stay in {path}: "
            "check the collector and run this again"
        )


def _profiles(where: Destination) -> tuple[profiles.Profile, ...]:
    wanted = profiles.parse(load().otel_profile)
    return profiles.recognised(where) if wanted is None else wanted


def _existing(db: Path | None) -> Path:
    path = store_path(db)
    if not path.is_file():
        raise CommandError(f"there is no store at {path}: name it with --db")
    return path
