"""``corevital db``: the store's upkeep."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import typer

from corevital_otel import profiles
from corevital_otel.cli import CommandError
from corevital_otel.cli.common import store_path
from corevital_otel.otlp import Destination, destination
from corevital_otel.resend import Resender
from corevital_otel.settings import load
from corevital_otel.store import outbox, schema
from corevital_otel.store.reader import StoreError

_BATCH: Final = 200


def migrate(db: Path | None) -> None:
    """See :func:`corevital_otel.cli.db_migrate`."""
    path = _existing(db)
    try:
        with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as connection:
            before, after = schema.migrate(connection)
    except (schema.SchemaError, sqlite3.Error) as error:
        raise CommandError(f"the store {path} cannot be migrated: {error}") from None
    done = "has that schema already" if before == after else f"migrated from schema {before}"
    typer.echo(f"{path}: schema {after}, {done}")


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
            sent = 0
            try:
                for batch in box.batches(_BATCH):
                    taken = sender.send(batch)
                    box.sent(taken)
                    sent += len(taken)
                    if len(taken) < len(batch):
                        break
            finally:
                sender.close()
    except StoreError as error:
        raise CommandError(str(error)) from None
    typer.echo(f"{sent} spans sent to {where.endpoint}")
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
