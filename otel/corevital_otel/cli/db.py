"""``corevital db``: the store's upkeep."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from corevital.text import printable
from corevital_otel import profiles
from corevital_otel.cli import CommandError
from corevital_otel.cli.common import duration, say, store_path
from corevital_otel.destination import Destination, destination
from corevital_otel.resend import Resender
from corevital_otel.settings import load
from corevital_otel.store import files, outbox, schema, upkeep
from corevital_otel.store.files import StoreError

_BATCH: Final = 200
_COPIED: Final = 2000
"""Pages copied at a time by a backup: 8 MB."""
_LOOK_EVERY: Final = 1_000_000
"""Instructions of SQLite's machine between two signs of life."""
_SHOW_EVERY_S: Final = 1.0


def migrate(db: Path | None) -> None:
    """See :func:`corevital_otel.cli.db_migrate`."""
    path = _existing(db)
    with _opened(path, "migrated") as connection, _Progress() as progress:
        connection.set_progress_handler(lambda: progress.show("migrating"), _LOOK_EVERY)
        before, after = schema.migrate(connection)
    done = "has that schema already" if before == after else f"migrated from schema {before}"
    say(f"{path}: schema {after}, {done}")


def prune(db: Path | None, older_than: str | None, max_mb: float | None) -> None:
    """See :func:`corevital_otel.cli.db_prune`."""
    retention = None if older_than is None else duration(older_than, "--older-than")
    if retention is None and max_mb is None:
        settings = load()
        retention, max_mb = timedelta(days=settings.db_retention_days), settings.db_max_mb
    path = _existing(db)
    with _opened(path, "pruned") as connection:
        _refuse_empty(connection, path)
        with _Progress() as progress:
            gone = upkeep.prune(
                connection,
                path,
                None if retention is None else time.time() - retention.total_seconds(),
                None if max_mb is None else int(max_mb * 2**20),
                lambda gone: progress.show(f"{gone} requests deleted"),
            )
        say(f"{path}: {gone} requests deleted, {_content(connection)} left")


def backup(db: Path | None, target: Path) -> None:
    """See :func:`corevital_otel.cli.db_backup`."""
    path = _existing(db)
    if target.exists():
        raise CommandError(f"{target} exists: name a file that does not, or move it away")
    partial = target.with_name(f"{target.name}.partial")  # a file of the target's name is a whole one
    try:
        with _opened(path, "backed up") as connection:
            _refuse_empty(connection, path)
            content = _copy(connection, path, partial)
        partial.rename(target)
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {files.why(error)}") from None
    finally:
        partial.unlink(missing_ok=True)
    say(f"{target}: {content} backed up from {path}")


def _copy(connection: sqlite3.Connection, path: Path, target: Path) -> str:
    """Copy the store as it is now, while servers go on writing. Returns what the copy holds."""
    target.unlink(missing_ok=True)
    try:
        files.create(target)
    except OSError as error:
        raise CommandError(
            f"the store {path} cannot be backed up: unable to open database file {target} ({files.why(error)})"
        ) from None
    with closing(sqlite3.connect(target, isolation_level=None)) as copy, _Progress() as progress:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM resources").fetchone()  # all steps copy what is there from here on
        connection.backup(
            copy, pages=_COPIED, sleep=0, progress=lambda _, left, all_: progress.show(f"{all_ - left} of {all_} pages")
        )
        connection.execute("COMMIT")
        copy.execute("PRAGMA journal_mode = DELETE")  # a file alone, without a log beside it
        copy.set_progress_handler(lambda: progress.show("checking the copy"), _LOOK_EVERY)
        if (found := copy.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise CommandError(f"the store {path} is damaged: {printable(found, 200)}; restore an earlier backup")
        return _content(copy)


class _Progress:
    """Signs of life on a terminal, in one line that is gone at the end."""

    def __init__(self) -> None:
        self._shown_at = time.monotonic()
        self._width = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)  # noqa: T201

    def show(self, text: str) -> None:
        """Show it, if a second has passed."""
        now = time.monotonic()
        if now - self._shown_at >= _SHOW_EVERY_S and sys.stderr.isatty():
            self._shown_at = now
            self._width = max(self._width, len(text))
            print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def _opened(path: Path, done: str) -> Iterator[sqlite3.Connection]:
    def failed(error: Exception) -> CommandError:
        return CommandError(f"the store {path} cannot be {done}: {files.why(error)}")

    try:
        with closing(files.connect(path, "rw", failed)) as connection:
            yield connection
    except (schema.SchemaError, sqlite3.Error, ValueError, OverflowError) as error:
        raise failed(error) from None


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
                say(f"{waiting} spans wait to be sent")
                return
            assert where is not None
            sent, refused = _send(box, where, waiting)
            damaged = box.damaged + refused
            why = box.damage or "no span can be made of them"
            damage = f"{damaged} are damaged ({why}) and left out: `corevital db prune` deletes them in time"
    except StoreError as error:
        raise CommandError(str(error)) from None
    say(f"{sent} spans sent to {where.endpoint}")
    if sent < waiting - damaged:
        raise CommandError(
            f"{waiting - sent - damaged} spans could not be delivered to {where.endpoint} and stay in {path}: "
            "check the collector and run this again" + (f"; {damage}" if damaged else "")
        )
    if damaged:
        raise CommandError(f"of the rows in {path} {damage}")


def _send(box: outbox.Outbox, where: Destination, waiting: int) -> tuple[int, int]:
    """Send what is in the store, until there is no use in it. Returns how many were sent, and how many cannot be."""
    sender = Resender(where, _profiles(where))
    sent = 0
    try:
        with _Progress() as progress:
            for batch in box.batches(_BATCH):
                taken = sender.send(batch)
                box.sent(taken)
                sent += len(taken)
                if sender.hopeless:
                    break
                progress.show(f"{sent} of {waiting} spans sent")
    finally:
        sender.close()
    return sent, sender.damaged


def _profiles(where: Destination) -> tuple[profiles.Profile, ...]:
    wanted = profiles.parse(load().otel_profile)
    return profiles.recognised(where) if wanted is None else wanted


def _existing(db: Path | None) -> Path:
    path = store_path(db)
    if not path.is_file():
        raise CommandError(f"there is no store at {path}: name it with --db")
    return path
