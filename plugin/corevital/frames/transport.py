"""How frames travel: ZeroMQ PUSH to PULL over abstract Unix sockets.

Abstract sockets have no file, so a process that is killed leaves nothing behind; their names hold the receiving
server's 128-bit random id, so several servers on one machine do not mix. Both ends are bounded. The sender never
waits: a frame that does not fit is dropped and counted, and the count travels in the next frame's header.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zmq

from corevital.frames.record import ROW, SAMPLED, Frame, FrameError, decode, encode

_QUEUED_FRAMES: Final = 512
"""Frames either side may hold: seconds of decoding; 110 MB if every frame were of 1024 rows."""

_MOST_BYTES: Final = 16 << 20
"""Of a frame; a larger message is nobody's frame."""

_MAX_SERVERS: Final = 64
"""API servers one worker keeps connections to; the one longest unused goes first."""

_LINGER_MS: Final = 300
"""How long a worker that shuts down may still deliver."""

NO_ROWS: Final = np.empty(0, ROW)
NO_SAMPLED: Final = np.empty(0, SAMPLED)


def _address(server: str) -> str:
    return f"ipc://@corevital-{server}"


class FrameSender:
    """The worker's end. Create it in the process that uses it, after any fork."""

    def __init__(self, runner: str) -> None:
        self._runner = runner
        self._identity = secrets.randbits(64)
        self._context = zmq.Context()
        self._sockets: OrderedDict[str, zmq.Socket[bytes]] = OrderedDict()
        self.dropped: Counter[str] = Counter()
        """Records dropped so far because the way out was full, by server."""

    def send(self, server: str, rows: npt.NDArray[Any] = NO_ROWS, sampled: npt.NDArray[Any] = NO_SAMPLED) -> None:
        """Send one frame to ``server``, or drop and count it. Never blocks.

        Args:
            server: the id in the stamp.
            rows: array of :data:`~corevital.frames.record.ROW`.
            sampled: array of :data:`~corevital.frames.record.SAMPLED`.
        """
        frame = Frame(rows, sampled, self._runner, self._identity, self.dropped[server], time.time())
        try:
            self._socket(server).send(encode(frame), zmq.NOBLOCK)
        except zmq.Again:
            self.drop(server, len(rows) + len(sampled))

    def drop(self, server: str, records: int) -> None:
        """Count records that were lost on their way to ``server``."""
        self.dropped[server] += records

    def _socket(self, server: str) -> zmq.Socket[bytes]:
        socket = self._sockets.get(server)
        if socket is None:
            socket = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.SNDHWM, _QUEUED_FRAMES)
            socket.setsockopt(zmq.LINGER, _LINGER_MS)
            # the server was there before its stamp; once gone, whoever takes its name is somebody else
            socket.setsockopt(zmq.RECONNECT_IVL, -1)
            socket.connect(_address(server))
            self._sockets[server] = socket
            while len(self._sockets) > _MAX_SERVERS:
                gone, oldest = self._sockets.popitem(last=False)
                oldest.close(0)
                del self.dropped[gone]
        self._sockets.move_to_end(server)
        return socket

    def close(self) -> None:
        """Deliver what is queued within a bound, then close."""
        self._context.destroy(_LINGER_MS)


class FrameReceiver:
    """The API server's end. Binds on creation; its :attr:`server` id goes into the stamps."""

    def __init__(self) -> None:
        self.server = secrets.token_hex(16)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, _QUEUED_FRAMES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MOST_BYTES)
        self._socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())  # socket names are no secret on a machine
        self._socket.bind(_address(self.server))
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._woken, zmq.POLLIN)
        self.malformed = 0
        """Messages that were no frames."""

    def wake(self) -> None:
        """Make a :meth:`wait` in another thread return. Any thread may call this."""
        os.eventfd_write(self._woken, 1)

    def wait(self, timeout_s: float | None) -> None:
        """Wait until there is a frame, :meth:`wake` is called, or the time is over."""
        self._poller.poll(None if timeout_s is None else math.ceil(max(timeout_s, 0.0) * 1000))
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._woken)

    def frames(self) -> Iterator[Frame]:
        """What is here already, and no more than either side holds."""
        for _ in range(_QUEUED_FRAMES):
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                yield decode(data)
            except FrameError:
                self.malformed += 1

    def close(self) -> None:
        """Close; frames that were not read are gone."""
        self._context.destroy(0)
        os.close(self._woken)
