"""Keeps one hub process of the deployment running on this host: starts it when needed, and ends it with the engines.

Engines of one deployment on one host share a hub. The first keeper to take the lock, a socket's name, starts it. When
that engine ends, another keeper takes over; the new hub has the same identity, so its clients simply reconnect.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.util import Finalize
from typing import BinaryIO, Final
from urllib.parse import urlsplit

from corevital import log
from corevital.frames.engine_key import VARIABLE, engine_key
from corevital.guard import guarded
from corevital.log import warn_once

_RETRY_S: Final = 1.0
"""Between two attempts to take the lock."""

_PAUSES_S: Final = (0.5, 2.0, 8.0, 30.0)
"""Before a hub that has died is started again; the last pause is used for all further restarts."""

_STEADY_S: Final = 60.0
"""After a hub has run this long, the pauses start over."""

_IN_USE_S: Final = 30.0
"""Before the next attempt if another process has the hub's address."""

IN_USE: Final = 3
"""Exit status of a hub whose address another process has."""

CLEAN: Final = b"."
"""What an engine writes that ends as it should; one that is killed writes nothing."""

_LOOK_S: Final = 0.2
"""Between two looks whether we are to stop."""

_DETACHED: Final = """
import contextlib, os, sys
if os.fork():
    os._exit(0)
pipe, status = int(sys.argv[1]), 1
os.write(pipe, b"%d " % os.getpid())
try:
    from corevital_otel.service.hub_process import main
    status = main(lambda: os.write(pipe, b"ready "))
finally:
    with contextlib.suppress(OSError):
        os.write(pipe, b"%d" % status)
sys.exit(status)
"""
"""Runs the hub as nobody's descendant: an engine may kill its own as soon as it stops, before they have reported."""

_STOP_S: Final = 6.0
"""How long a hub may take to report what it has after its engine has ended."""


class HubKeeper:
    """Starts and restarts the hub. :meth:`start` may be called at any time, any number of times.

    Args:
        model: the name that the engine's model is served under.
        engine: facts of the engine and its device.
        kernel: the backend that will read the logits, for the log.
        has_port: the hub opens its HTTP port even if ``COREVITAL_HTTP`` is not set.
    """

    def __init__(self, model: str, engine: Mapping[str, str | int], kernel: str, *, has_port: bool = True) -> None:
        self._given = {"model": model, "engine": dict(engine), "kernel": kernel, "has_port": has_port}
        self._has_logged = False  # that the address is in use
        self._hub = engine_key().hub
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._has_begun = threading.Event()

    def start(self) -> None:
        """Keep a hub running, from a thread. Returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._go, name="corevital-keeper", daemon=True)
            self._thread.start()
            Finalize(None, self.close, exitpriority=-1)  # after the last events are sent to it

    def wait(self, timeout_s: float) -> None:
        """Wait until the hub listens, has failed, or is another process's affair."""
        self._has_begun.wait(timeout_s)

    def close(self) -> None:
        """End the hub, within a bound. Idempotent."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_S + 1.0)

    @guarded("the hub's keeper")
    def _go(self) -> None:
        if self._hub.tcp is not None and not is_of_this_host(self._hub.tcp):
            self._has_begun.set()
            return
        with socket.socket(socket.AF_UNIX) as lock:
            while not take(lock, self._hub.server):
                self._has_begun.set()
                if self._stopping.wait(_RETRY_S):
                    return
            self._keep()

    def _keep(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            status = self._run()
            self._has_begun.set()
            if self._stopping.is_set():
                return
            if status == IN_USE:  # it has logged the cause
                self._has_logged = True
                self._stopping.wait(_IN_USE_S)
                continue
            deaths = 0 if time.monotonic() - began > _STEADY_S else deaths
            pause_s = _PAUSES_S[min(deaths, len(_PAUSES_S) - 1)]
            deaths += 1
            logging.getLogger(log.LOGGER_NAME).warning(
                "the hub has ended (status %d): restarting in %.1f s; engines send it again what was not reported",
                status,
                pause_s,
            )
            self._stopping.wait(pause_s)

    def _run(self) -> int:
        """Run a hub until it ends or we stop. Returns its exit status."""
        env = dict(os.environ)
        if self._hub.tcp is None:
            env[VARIABLE] = engine_key().key.hex()
        read, write = os.pipe()
        command = [sys.executable, "-P", "-c", _DETACHED, str(write)]  # -P: no modules of the folder
        with open(read, "rb", buffering=0) as pipe:
            try:
                launcher = subprocess.Popen(  # noqa: S603 - a list of ours, without a shell
                    command, stdin=subprocess.PIPE, env=env, start_new_session=True, pass_fds=(write,)
                )
            except OSError as error:
                warn_once(
                    "hub start",
                    "the hub process cannot be started (%s): trying again; nothing is reported until it runs",
                    error,
                )
                return 1
            finally:
                os.close(write)
            launcher.wait()
            assert launcher.stdin is not None  # noqa: S101 - for the types
            hub = _Detached(pipe)
            with contextlib.suppress(OSError), launcher.stdin as given:  # it has ended already
                given.write(f"{json.dumps({**self._given, 'quiet': self._has_logged})}\n".encode())
                given.flush()
                while not hub.has_ended(_LOOK_S) and not self._stopping.is_set():
                    if hub.is_ready:
                        self._has_begun.set()
                given.write(CLEAN)
            # its input is closed: it reports what it has and ends, unless a fork of this process holds that open
            for number in (signal.SIGTERM, signal.SIGKILL):
                deadline = time.monotonic() + _STOP_S / 2
                while not hub.has_ended(_LOOK_S):
                    if time.monotonic() > deadline:
                        hub.send(number)
                        break
            return hub.status


def take(lock: socket.socket, server: str) -> bool:
    """Take the lock of a hub on this host, until the socket is closed. False: another process has it.

    Args:
        lock: a new socket of the family ``AF_UNIX``.
        server: the hub's id.
    """
    try:
        lock.bind(f"\0corevital-keeper-{server}")
    except OSError:
        return False
    return True


class _Detached:
    """A process that runs :data:`_DETACHED`.

    Args:
        pipe: what it writes; it ends with the process.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        self._written = b""
        self._has_ended = False

    def has_ended(self, timeout_s: float) -> bool:
        """Whether it has ended; waits at most this long for it."""
        if not self._has_ended and self._poll.poll(timeout_s * 1000):
            data = self._pipe.read(64)
            self._written += data or b""
            self._has_ended = not data
        return self._has_ended

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self._written and not self._has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self._written.split()[0]), number)

    @property
    def is_ready(self) -> bool:
        """Whether it listens."""
        return b"ready" in self._written

    @property
    def status(self) -> int:
        """Its exit status, where it wrote one: it did unless it was killed."""
        words = [word for word in self._written.split() if word != b"ready"]
        return int(words[1]) if len(words) > 1 else -signal.SIGKILL


def is_of_this_host(tcp: str) -> bool:
    """Whether an address ``tcp://host:port`` belongs to this host."""
    try:
        host = urlsplit(tcp).hostname or ""
        for family, kind, _, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                try:
                    probe.bind((address[0], 0))
                except OSError:
                    continue
                return True
    except (OSError, ValueError):
        pass
    return False
