"""``corevital db``: migrates, prunes, backs up and restores the store, and sends its spans."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from corevital.text import printable
from corevital_otel.cli.common import duration, print_text, store_path
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.progress import Progress
from corevital_otel.cli.terminal import print_error
from corevital_otel.otlp.destination import Destination, destination
from corevital_otel.service.resend import Resender
from corevital_otel.settings import load
from corevital_otel.spans import backends
from corevital_otel.store import files, outbox, schema, upkeep
from corevital_otel.store import restore as restoring
from corevital_otel.store.files import StoreError

_BATCH: Final = 200
_COPIED: Final = 2000
"""Pages copied at a time by a backup: 8 MB."""
_LOOK_EVERY: Final = 1_000_000
"""Instructions of SQLite's virtual machine between two updates of the progress line."""


def migrate(db: Path | None, *, check: bool = False) -> None:
    """See :func:`corevital_otel.cli.app.db_migrate`."""
    path = _existing(db)
    if check:
        with _opened(path, "checked", "ro") as connection:
            held = schema.check(connection)
        print_text(f"{path}: schema {schema.VERSION}, up to date" if held else f"{path}: empty, nothing to migrate")
        return
    with _opened(path, "migrated") as connection, Progress() as progress:
        connection.set_progress_handler(lambda: progress.show("migrating"), _LOOK_EVERY)
        before, after = schema.migrate(connection)
    done = "already up to date" if before == after else f"migrated from schema {before}"
    print_text(f"{path}: schema {after}, {done}")


def prune(db: Path | None, older_than: str | None, max_mb: float | None) -> None:
    """See :func:`corevital_otel.cli.app.db_prune`."""
    retention = None if older_than is None else duration(older_than, "--older-than")
    if retention is None and max_mb is None:
        settings = load()
        retention, max_mb = timedelta(days=settings.db_retention_days), settings.db_max_mb
    path = _existing(db)
    with _opened(path, "pruned") as connection:
        _refuse_empty(connection, path)
        with Progress() as progress:
            gone = upkeep.prune(
                connection,
                path,
                None if retention is None else time.time() - retention.total_seconds(),
                None if max_mb is None else int(max_mb * 2**20),
                lambda gone: progress.show(f"{gone} requests deleted"),
            )
        print_text(f"{path}: {gone} requests deleted, {_content(connection)} left")


def backup(db: Path | None, target: Path) -> None:
    """See :func:`corevital_otel.cli.app.db_backup`."""
    path = _existing(db)
    if target.exists():
        raise CommandError(f"{target} exists: move it away, or name another file")
    partial = target.with_name(f"{target.name}.partial")  # only a complete copy gets the target's name
    try:
        with _opened(path, "backed up") as connection:
            _refuse_empty(connection, path)
            content = _copy(connection, path, partial)
        partial.rename(target)
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {files.why(error)}") from None
    finally:
        partial.unlink(missing_ok=True)
    print_text(f"{target}: {content} backed up from {path}")


def restore(db: Path | None, source: Path) -> None:
    """See :func:`corevital_otel.cli.app.db_restore`."""
    path = store_path(db)
    try:
        with Progress() as progress:
            done = restoring.restore(source, path, progress.show)
    except StoreError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(
            f"{source} cannot be restored to {path} ({files.why(error)}): fix it, and run this again"
        ) from None
    if done.damaged:
        print_error(f"{done.damaged} requests of {source} are damaged ({done.damage}): an earlier backup may have them")
    migrated = "" if done.version == schema.VERSION else f", migrated from schema {done.version}"
    former = "" if done.former is None else f"; the former store is {done.former}: delete it when you need it no more"
    print_text(f"{path}: {done.requests} requests restored from {source}{migrated}{former}")


def _copy(connection: sqlite3.Connection, path: Path, target: Path) -> str:
    """Copy the current state of the store while servers keep writing. Returns a summary of the copy."""
    target.unlink(missing_ok=True)
    try:
        files.create(target)
    except OSError as error:
        raise CommandError(
            f"the store {path} cannot be backed up: unable to open database file {target} ({files.why(error)})"
        ) from None
    with closing(sqlite3.connect(target, isolation_level=None)) as copy, Progress() as progress:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM resources").fetchone()  # all steps copy the state of this read
        connection.backup(
            copy, pages=_COPIED, sleep=0, progress=lambda _, left, all_: progress.show(f"{all_ - left} of {all_} pages")
        )
        connection.execute("COMMIT")
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a write-ahead log
        copy.set_progress_handler(lambda: progress.show("checking the copy"), _LOOK_EVERY)
        if (found := copy.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise CommandError(f"the store {path} is damaged: {printable(found, 200)}; restore an earlier backup")
        return _content(copy)


@contextmanager
def _opened(path: Path, done: str, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    def failed(error: Exception) -> CommandError:
        return CommandError(f"the store {path} cannot be {done}: {files.why(error)}")

    try:
        with closing(files.connect(path, mode, failed)) as connection:
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


def send(db: Path | None, *, dry_run: bool) -> None:
    """See :func:`corevital_otel.cli.app.db_export`."""
    path = _existing(db)
    where = destination()
    if where is None and not dry_run:
        raise CommandError("no destination for spans: set OTEL_EXPORTER_OTLP_ENDPOINT")
    try:
        with outbox.Outbox(path) as box:
            waiting = box.count()
            if dry_run or where is None or not waiting:
                print_text(f"{waiting} spans are waiting to be sent")
                return
            sent, refused = _send(box, where, waiting)
            damaged = box.damaged + refused
            why = box.damage or "they do not make spans"
            damage = f"{damaged} are damaged ({why}) and were skipped: `corevital db prune` deletes them in time"
    except StoreError as error:
        raise CommandError(str(error)) from None
    print_text(f"{sent} spans sent to {where.endpoint}")
    if sent < waiting - damaged:
        raise CommandError(
            f"{waiting - sent - damaged} spans could not be delivered to {where.endpoint} and stay in {path}: "
            "check the collector and run this again" + (f"; {damage}" if damaged else "")
        )
    if damaged:
        raise CommandError(f"of the rows in {path} {damage}")


def _send(box: outbox.Outbox, where: Destination, waiting: int) -> tuple[int, int]:
    """Send the waiting spans until done or hopeless. Returns how many were sent, and how many cannot be."""
    sender = Resender(where, backends.wanted(load().otel_profile, where))
    sent = 0
    try:
        with Progress() as progress:
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


def _existing(db: Path | None) -> Path:
    path = store_path(db)
    if not path.is_file():
        raise CommandError(f"there is no store at {path}: name it with --db")
    return path
