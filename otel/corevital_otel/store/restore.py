"""Puts a backup in a store's place: verified first, the former store kept, and never under a process that uses it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from corevital_otel.store import files, schema, senders
from corevital_otel.store.files import StoreError
from corevital_otel.store.scan import Scan
from corevital_otel.store.upkeep import is_busy

_COPIED: Final = 2000
"""Pages copied at a time: 8 MB."""
_LOOK_EVERY: Final = 1_000_000
"""Instructions of SQLite's virtual machine between two updates of the progress."""
_LOCKS: Final = (0x40000000, 512)
"""Where SQLite locks a file, and how many bytes: https://www.sqlite.org/fileformat2.html#the_lock_byte_page."""
_FLOCK: Final = "hhqqi4x"
"""``struct flock``: type, origin, start, length, process."""
_MAGIC: Final = b"SQLite format 3\0"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    Attributes:
        requests: rows in the store now.
        version: the backup's schema, before it was migrated.
        former: where the former store is now; None: there was none.
        damaged: rows that cannot be read: they were damaged in the backup.
        damage: what is wrong with the first of them; "" if none.
    """

    requests: int
    version: int
    former: Path | None
    damaged: int
    damage: str


def restore(backup: Path, store: Path, progress: Progress = lambda text: None) -> Restored:
    """Verify a copy of the backup, then put it in the store's place. The backup stays unchanged.

    Args:
        backup: a store's file.
        store: where it goes.
        progress: called with what is being done.

    Raises:
        StoreError: the backup is damaged or not a store, or the store is in use. The store is unchanged.
        OSError: a file cannot be written.
    """
    store = Path(os.path.realpath(store))
    store.parent.mkdir(parents=True, exist_ok=True)
    if store.exists():
        files.require_file(store)
        if backup.exists() and store.samefile(backup):
            raise StoreError(f"{backup} is the store itself: name a backup")
        _require_unused(store)
        _require_ours(store)
    partial = store.with_name(f"{store.name}.partial")
    if partial.exists() and backup.exists() and partial.samefile(backup):
        raise StoreError(f"{backup} has the name of the copy that a restore makes: rename it")
    try:
        version = _verified_copy(backup, partial, progress)
        scan = Scan(partial)
        requests = 0
        for requests, _ in enumerate(scan.rows(series=True), 1):
            progress(f"checking {requests} of {scan.total} requests")
        former = _put_in_place(partial, store)
    finally:
        for ending in ("", "-journal", "-wal", "-shm"):
            files.beside(partial, ending).unlink(missing_ok=True)
    return Restored(requests, version, former, scan.damaged, scan.damage)


def _verified_copy(backup: Path, target: Path, progress: Progress) -> int:
    """Copy a backup, check all of the copy, and migrate it. Returns the backup's schema."""

    def failed(error: Exception) -> StoreError:
        if isinstance(error, schema.SchemaError):
            return StoreError(f"{backup} cannot be restored, the store is unchanged: {error}")
        if isinstance(error, OSError):
            return StoreError(f"{backup} cannot be read ({files.why(error)}), the store is unchanged: name a backup")
        full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        fix = "free space on the store's disk" if full else "use an earlier backup"
        return StoreError(f"{backup} cannot be restored ({files.why(error)}), the store is unchanged: {fix}")

    target.unlink(missing_ok=True)
    files.create(target)
    try:
        with (
            closing(files.connect(backup, "ro", failed)) as source,
            closing(files.connect(target, "rw", failed)) as copy,
        ):
            if source.execute("PRAGMA user_version").fetchone()[0] == 0:
                schema.check(source)
                raise StoreError(f"{backup} is empty: use another backup")
            if files.size(backup) % source.execute("PRAGMA page_size").fetchone()[0]:
                raise sqlite3.DatabaseError("its end is missing")  # SQLite would read zeros there
            source.backup(
                copy, pages=_COPIED, sleep=0, progress=lambda _, left, all_: progress(f"{all_ - left} of {all_} pages")
            )
            copy.execute("PRAGMA journal_mode = DELETE")
            copy.set_progress_handler(lambda: progress("checking the copy"), _LOOK_EVERY)
            if (found := copy.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(f"it is damaged: {found}")
            files.require_tables(copy, "reports")
            version, _ = schema.migrate(copy)
            files.require_tables(copy, "reports", "resources", "baseline")
            return version
    except (schema.SchemaError, sqlite3.Error, ValueError, OverflowError) as error:
        raise failed(error) from None


def _require_ours(store: Path) -> None:
    """Refuse a file that another program has made. One that is damaged, or of another version, may be replaced."""
    with contextlib.suppress(sqlite3.Error), closing(files.connect(store, "ro", lambda error: error)) as connection:
        version, tables = connection.execute(
            "SELECT user_version, (SELECT count(*) FROM sqlite_master WHERE name = 'reports') FROM pragma_user_version"
        ).fetchone()
        others = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if others and not (version > 0 and tables):
            raise StoreError(f"{store} holds tables of another program: name the store with --db")


def _require_unused(store: Path) -> None:
    """Refuse a store that a process has open: while it is, that process locks the file.

    Raises:
        StoreError: one has.
    """
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, *_LOCKS, 0)
    with store.open("rb") as file:
        kind, *_, process = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    if kind != fcntl.F_UNLCK:
        who = f"process {process}" if process > 0 else "another process"
        raise _in_use(store, who)


def _fold(store: Path) -> None:
    """Put what is in a store's write-ahead log into its file. Where it is damaged, the log stays."""
    with store.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return  # SQLite would delete the log
    try:
        with closing(files.connect(store, "rw", lambda error: error)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        if is_busy(error):
            raise _in_use(store, "another process") from None


def _in_use(store: Path, who: str) -> StoreError:
    return StoreError(f"the store {store} is in use by {who}: stop the server, then restore; nothing has changed")


def _put_in_place(new: Path, store: Path) -> Path | None:
    """Rename a verified file to the store's name, and the former store to another. Returns the latter."""
    former = None
    aside = store.with_name(f"{store.name}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
    if store.exists():
        _require_unused(store)
        _fold(store)
    # also those of a store that was removed: SQLite would put them into the new one
    for ending in ("-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            files.beside(store, ending).rename(f"{aside}{ending}")
    files.beside(store, senders.ENDING).unlink(missing_ok=True)  # its marks are of the former store's servers
    if store.exists():
        former = aside
        try:
            os.link(store, former)  # so that there is a store at each moment
        except OSError:  # such a file system has no links
            store.rename(former)
    os.replace(new, store)
    folder = os.open(store.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return former
