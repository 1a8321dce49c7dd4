"""Which servers that share a store still run: each locks one byte of a file beside it. The kernel unlocks it when the
process ends, however it ends.

The byte's place is the row of the server's resource, ``resource_id`` of its reports. A lock that nobody else holds
means that the spans of that resource are nobody's: another server may send them. A byte that is 1 means that its server
locks at all: one without ``COREVITAL_DB_RESEND`` does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from corevital.log import warn_once
from corevital_otel.store import files

ENDING: Final = "-senders"
_FLOCK: Final = "hhqqi4x"
"""``struct flock``: type, origin, start, length, process."""
_MOST: Final = 2**31
"""A larger ``resource_id`` is damage."""
_TRIES: Final = 100
_PAUSE_S: Final = 0.01
"""Another server holds a lock for moments, while it looks."""


class Senders:
    """The locks of one store's servers. Any thread may use it; a forked child does not hold what it inherits.

    Args:
        store: the store's file.

    Raises:
        OSError: the file beside it cannot be opened.
    """

    def __init__(self, store: Path) -> None:
        self._mutex = threading.Lock()
        self._own: int | None = None
        self._file: int | None = _opened(files.beside(store, ENDING), store)
        forget = weakref.WeakMethod(self.close)
        os.register_at_fork(after_in_child=lambda: (close := forget()) and close())

    def hold(self, resource: int) -> None:
        """Hold the lock of a resource until :meth:`close`, beside other processes of the same one.

        Raises:
            OSError: the file system has no such locks, or another process keeps this one.
        """
        with self._mutex:
            for again in range(_TRIES, -1, -1):
                try:
                    self._set(fcntl.F_RDLCK, resource)
                    break
                except BlockingIOError:
                    if not again:
                        raise
                    time.sleep(_PAUSE_S)
            self._own = resource
            os.pwrite(self._descriptor, b"\1", resource)

    @contextlib.contextmanager
    def alone(self, resource: int) -> Iterator[bool]:
        """Whether no other process has this resource. None can start with it meanwhile."""
        with self._mutex:
            try:
                free = 0 < resource < _MOST and os.pread(self._descriptor, 1, resource) == b"\1"
                if free:
                    self._set(fcntl.F_WRLCK, resource)
            except OSError:
                free = False
            try:
                yield free
            finally:
                if free:
                    with contextlib.suppress(OSError):
                        self._set(fcntl.F_RDLCK if resource == self._own else fcntl.F_UNLCK, resource)

    def close(self) -> None:
        """Give the lock back. Idempotent."""
        file, self._file, self._own = self._file, None, None
        if file is not None:
            os.close(file)

    @property
    def _descriptor(self) -> int:
        if self._file is None:
            raise OSError("closed")
        return self._file

    def _set(self, kind: int, resource: int) -> None:
        lock = struct.pack(_FLOCK, kind, os.SEEK_SET, resource, 1, 0)
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, lock)


def _opened(path: Path, store: Path) -> int:
    """Open the file of locks. A new one has the store's mode, as SQLite's own files beside it have."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(FileExistsError):
        file = os.open(path, flags | os.O_CREAT | os.O_EXCL, files.MODE)
        with contextlib.suppress(OSError):
            os.fchmod(file, stat.S_IMODE(store.stat().st_mode))
        return file
    return os.open(path, flags)


def join(store: Path, resource: int, former: Senders | None = None) -> Senders | None:
    """Show that a server runs, before it writes a row, to those that look for spans of servers that do not.

    Args:
        store: the store's file.
        resource: the row of the server's resource.
        former: what it holds already, perhaps of a file that was replaced; closed where there is a new one.

    Returns:
        None: no file beside the store can be locked, which is logged once.

    Raises:
        BlockingIOError: another server is looking; try again.
    """
    senders: Senders | None = None
    try:
        senders = Senders(store)
        senders.hold(resource)
    except OSError as error:
        if senders is not None:
            senders.close()
        if isinstance(error, BlockingIOError):
            raise
        text = "the file %s%s cannot be locked (%s): spans of a killed server are sent after an hour"
        warn_once("senders", text, store, ENDING, files.why(error))
        return former
    if former is not None:
        former.close()
    return senders
