"""The store's file: what may be opened, with which rights it is made, and whether it is still the one at its path."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from corevital.text import printable

READ_S: Final = 30.0
"""Seconds that a read may take without a row; a prepared file could block a reader for ever."""
LARGEST_VALUE: Final = 16 * 2**20
"""Bytes of a column that are read at most. A row with the longest series has 1 MB."""

MODE: Final = 0o600
_LOOK_EVERY: Final = 20_000
"""Instructions of SQLite's machine between two looks at the clock: about a millisecond."""
_KINDS: Final = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class StoreError(RuntimeError):
    """The store cannot be read. Its text is one line that names the cause and the fix."""


class EmptyStoreError(StoreError):
    """There is no store yet, or nothing in it."""


class StoreFile:
    """The files of a store that is being opened, to check later whether they are still the ones at its path.

    Made before SQLite opens the store; makes the file where there is none.

    Args:
        path: the store's file.

    Raises:
        OSError: it cannot be made, or is not a file.
    """

    def __init__(self, path: Path) -> None:
        create(path)
        require_file(path)
        self._path = path
        self._all = (path, beside(path, "-wal"), beside(path, "-shm"))
        self._known: list[tuple[int, int] | None] = [_identity(path), None, None]

    def opened(self) -> None:
        """SQLite has opened it, and its log.

        Raises:
            OSError: another file was put in its place meanwhile.
        """
        if _identity(self._path) != self._known[0]:
            raise OSError("it was replaced while it was opened")
        self._known = [_identity(path) for path in self._all]

    def moved(self) -> str:
        """What happened to the files since; "" if nothing.

        Raises:
            OSError: they cannot be looked at.
        """
        for path, known in zip(self._all, self._known, strict=True):
            found = _identity(path)
            if known is not None and found != known:
                which = "" if path == self._path else f"separated from its {path.name[-4:]} file"
                return which or ("removed" if found is None else "replaced")
        if size(self._path) == 0:
            for ending in ("", "-wal", "-shm"):  # the log of what was in it would be put into the empty file
                with contextlib.suppress(OSError):
                    beside(self._path, ending).unlink()
            return "emptied"
        return ""


def beside(path: Path, ending: str) -> Path:
    """SQLite's other files of a store: ``-wal`` and ``-shm``, beside the file that a link leads to."""
    return Path(os.path.realpath(path) + ending)


def size(path: Path) -> int:
    """Bytes of a file; 0: there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at a path; None: there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def require_file(path: Path) -> None:
    """Make sure that what is at a path is a file. SQLite would wait at a pipe, and write to a device.

    Raises:
        OSError: it is something else, or missing.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a file")


def create(path: Path) -> None:
    """Make a store's file where there is none, for its user alone: SQLite gives ``-wal`` and ``-shm`` the same mode.

    One that is there keeps its mode.

    Raises:
        OSError: it cannot be made.
    """
    if "\0" in str(path):
        raise OSError("a path cannot have a zero byte")
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        try:
            os.fchmod(descriptor, MODE)  # a umask may have taken our own rights
        finally:
            os.close(descriptor)


class Limit:
    """Ends a connection's work where it takes too long.

    Args:
        connection: the connection.
        seconds: how long it may work between two calls of :meth:`restart`.
    """

    def __init__(self, connection: sqlite3.Connection, seconds: float = READ_S) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        connection.set_progress_handler(self._over, _LOOK_EVERY)

    def restart(self) -> None:
        """Restart the time."""
        self._end = time.monotonic() + self._seconds

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self._end

    def _over(self) -> int:
        return self.over


def harden(connection: sqlite3.Connection) -> None:
    """Trust nothing in the file: no code in its schema, no value without a bound, no text that is not UTF-8.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    connection.text_factory = _text
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")


def require_tables(connection: sqlite3.Connection, *tables: str) -> None:
    """Make sure that these are tables: a view or a virtual table of that name could run anything.

    Raises:
        StoreError: one is not.
    """
    for name in tables:
        found = connection.execute("SELECT type, rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchall()
        if len(found) != 1 or found[0][0] != "table" or not found[0][1]:
            raise StoreError(f"it has no table {name}: it is damaged or another program's; restore a backup")


def connect(
    path: Path, mode: str, factory: Callable[[Exception], Exception], timeout_s: float = 5.0
) -> sqlite3.Connection:
    """A connection to a file that is there, that trusts nothing in it.

    Args:
        path: the file.
        mode: SQLite's: ``ro`` or ``rw``.
        factory: makes the error to raise from the one that happened.
        timeout_s: how long to wait for other processes.
    """
    try:
        require_file(path)
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=timeout_s, isolation_level=None
        )
    except (OSError, sqlite3.Error, ValueError) as error:
        raise factory(error) from None
    try:
        harden(connection)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise factory(error) from None
        raise
    return connection


def why(error: Exception) -> str:
    """An error's message, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "interrupted" in str(error):
        return f"it takes more than {READ_S:.0f} s"
    return printable(error, 200)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
