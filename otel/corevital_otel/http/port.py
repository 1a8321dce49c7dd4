"""The hub's port in a process: one thread that listens and serves, started and ended within bounds.

It leaves the process's signal handlers alone, and the logging of other uvicorn servers in it, such as the engine's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn
from prometheus_client import CollectorRegistry

from corevital.guard import guarded
from corevital.log import warn_once
from corevital_otel.addresses import Address
from corevital_otel.http.application import Application
from corevital_otel.http.connection import Connection
from corevital_otel.http.health import Health

HEADERS: Final = [("Connection", "close")]
"""Of every answer: a connection carries one request, so that its time can be bounded."""
_START_S: Final = 5.0
_ANSWERS_S: Final = 1
"""How long a closing port lets answers end."""
_WAITING: Final = 128
"""Connections that the system may hold before they are accepted."""
_CAUSES: Final = {
    errno.EADDRINUSE: "it is in use: end the other process",
    errno.EADDRNOTAVAIL: "this machine does not have that address: name one that it has",
    errno.EACCES: "this user may not open it: use a port from 1024 up",
}
_LOGGERS: Final = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")


class HttpPort:
    """Serves the hub's state, metrics and reports.

    Args:
        address: where to listen; port 0: any free one.
        token: that requests must carry; None: none is needed.
        state: see :class:`Application`.
        is_running: see :class:`Application`.
        db: see :class:`Application`.
        registry: see :class:`Application`.
    """

    def __init__(
        self,
        address: Address,
        token: str | None,
        state: Callable[[], Health],
        is_running: Callable[[str], bool],
        db: Path | None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._address = address
        self._application = Application(token, state, is_running, db, registry)
        self._begun = threading.Event()
        self._problem = ""
        self._server: _Server | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="corevital-http", daemon=True)

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self._address

    def start(self) -> bool:
        """Listen. False: it could not, and a line in the log says why. Waits for 5 s at most."""
        self._thread.start()
        if not self._begun.wait(_START_S):
            self._problem = f"it does not open within {_START_S:g} s: use an address in numbers"
        if not self._problem:
            return True
        warn_once(
            "http port",
            "COREVITAL_HTTP=%s cannot be opened (%s), or set COREVITAL_HTTP to another address or to none",
            self._address,
            self._problem,
        )
        self.close(0)
        return False

    def close(self, timeout_s: float) -> None:
        """Answer what waits, end within a time. Idempotent.

        Args:
            timeout_s: how long to wait for its end.
        """
        self._closed = True
        self._application.close()
        if self._server is not None:
            self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            try:
                listener = listen(self._address)
            except (OSError, UnicodeError) as error:
                self._problem = cause_of(error)
                return
            with listener, _muted():
                self._address = Address(self._address.host, listener.getsockname()[1])
                guarded("the hub's HTTP port")(asyncio.run)(self._serve(listener))
        finally:
            if not self._begun.is_set() and not self._problem:
                self._problem = "an error inside corevital: see the log"
            self._begun.set()

    async def _serve(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().set_exception_handler(_count)
        self._server = _Server(self._application, self._begun.set)
        if not self._closed:
            await self._server.serve([listener])


class _Server(uvicorn.Server):
    """uvicorn's server, with nothing of the process's own: neither its signals nor its logging.

    Args:
        application: what answers.
        begun: called once it listens.
    """

    def __init__(self, application: Any, begun: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http=Connection,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level=None,
                access_log=True,  # False would turn off that of the engine's server; see _muted
                proxy_headers=False,
                server_header=False,
                headers=HEADERS,
                backlog=_WAITING,
                timeout_graceful_shutdown=_ANSWERS_S,
            )
        )
        self._on_begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin."""
        await super().startup(sockets)
        self._on_begun()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, whatever clients do."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # they are closed then


def listen(address: Address) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: there is none; UnicodeError: the host's name is not one.
    """
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(_WAITING)
    except BaseException:
        listener.close()
        raise
    return listener


def cause_of(error: OSError | UnicodeError) -> str:
    """Why an address cannot be opened, and what helps."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "its host is unknown: use an address in numbers"
    return _CAUSES.get(error.errno or 0, f"{error.strerror}: fix it")


def _count(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An error outside of any request; without its text, which may be part of a request."""
    warn_once("http loop", "error in the HTTP port (%s): other requests unaffected", type(context.get("exception")))


@contextmanager
def _muted() -> Iterator[None]:
    """Drop what uvicorn logs in this thread; its loggers are shared by all its servers in the process."""
    here = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != here

    for name in _LOGGERS:
        logging.getLogger(name).addFilter(others)
    try:
        yield
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(others)
