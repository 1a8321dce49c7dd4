"""How frames travel: ZeroMQ PUSH to PULL over abstract Unix sockets, encrypted and authenticated by CurveZMQ.

Abstract sockets have no file, so a process that is killed leaves nothing behind; their names hold the receiving
server's 128-bit random id, so several servers on one machine do not mix. The names are public, so the receiver listens
only to peers that know its Curve key, which travels in stamps alone: anyone else's connection ends with the
handshake, before a message of its is taken in, and is counted.

Both ends are bounded in bytes. The sender never waits: a frame that does not fit is dropped and counted, and the count
travels in the next frame's header.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zmq
from zmq.utils import z85

from corevital.frames import stamp
from corevital.frames.record import HEADER_BYTES, ROW, SAMPLED, Frame, FrameError, decode, encode

MAX_BYTES: Final = 256 << 10
"""Of a frame: 1024 rows and their tokens are 246 KB. A sender splits what is larger."""

_SEND_QUEUE: Final = 512
"""Frames a sender holds at most for one server: seconds of decoding, and 128 MiB at the very most."""

_RECEIVE_QUEUE: Final = 64
"""Frames a receiver holds at most of one worker: 16 MiB."""

_AT_ONCE_BYTES: Final = 16 << 20
_AT_ONCE: Final = 4096
"""What one call of :meth:`FrameReceiver.frames` hands out: bytes, and frames."""

_REFILL_MS: Final = 2
"""How long a receiver that has emptied its queue waits for what the kernel and the workers hold behind it."""

_MAX_SERVERS: Final = 64
"""API servers one worker keeps connections to; the one longest unused goes first."""

_MAX_COUNTS: Final = 256
"""Servers whose lost records are counted, those that were never there included."""

_RECONNECT_MS: Final = (100, 5000)
"""First and longest pause before a worker tries again to reach a server."""

_LINGER_MS: Final = 300
"""How long a worker that shuts down may still deliver."""

_REFUSALS: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_REFUSALS_KEPT: Final = 100_000
"""Refused connections that wait to be counted, a hundred bytes each; libzmq stands still when there are more."""
_REFUSALS_AT_ONCE: Final = 1000

_CURVE_HEADER: Final = 64
"""What CurveZMQ adds to a message, generously."""

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
        """Send a frame to ``server``, several where it is too large for one, or drop and count it. Never blocks.

        Args:
            server: the id in the stamp.
            rows: array of :data:`~corevital.frames.record.ROW`.
            sampled: array of :data:`~corevital.frames.record.SAMPLED`.
        """
        if (socket := self._socket(server)) is None:
            self.drop(server, len(rows) + len(sampled))
            return
        for part in _parts(rows, sampled):
            frame = Frame(*part, self._runner, self._identity, self.dropped[server], time.time())
            try:
                socket.send(encode(frame), zmq.NOBLOCK)
            except zmq.Again:
                self.drop(server, len(frame.rows) + len(frame.sampled))

    def drop(self, server: str, records: int) -> None:
        """Count records that were lost on their way to ``server``."""
        self.dropped[server] += records
        if len(self.dropped) > _MAX_COUNTS:
            del self.dropped[next(name for name in self.dropped if name not in self._sockets)]

    def _socket(self, server: str) -> zmq.Socket[bytes] | None:
        socket = self._sockets.get(server)
        if socket is None:
            secret = stamp.secret_of(server)
            if secret is None:  # it is gone, or was never there
                return None
            socket = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.SNDHWM, _SEND_QUEUE)
            socket.setsockopt(zmq.LINGER, _LINGER_MS)
            # a busy machine, or a neighbour that only connects, may keep the first one out; to anyone who takes the
            # name of a server that has gone, the handshake gives nothing away
            socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS[0])
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS[1])
            socket.curve_serverkey = bytes.fromhex(secret)
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
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


def _parts(rows: npt.NDArray[Any], sampled: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """The tables of frames that are small enough: one, or all rows before the first token."""
    room = MAX_BYTES - HEADER_BYTES
    if rows.nbytes + sampled.nbytes <= room:
        yield rows, sampled
        return
    for at in range(0, len(rows), step := room // ROW.itemsize):
        yield rows[at : at + step], NO_SAMPLED
    for at in range(0, len(sampled), step := room // SAMPLED.itemsize):
        yield NO_ROWS, sampled[at : at + step]


class FrameReceiver:
    """The API server's end. Binds on creation; its :attr:`server` id and :attr:`secret` go into the stamps.

    It holds at most 16 MiB for each worker that is connected, and hands out 16 MiB in one call. A peer that does not
    know the secret takes a file descriptor and at most :data:`MAX_BYTES` until its handshake fails or 30 seconds are
    over; nothing but the process's limit of open files bounds how many there can be.

    Raises:
        RuntimeError: pyzmq was built without CurveZMQ.
    """

    def __init__(self) -> None:
        if not zmq.has("curve"):
            raise RuntimeError("this pyzmq was built without CurveZMQ: install the one from PyPI")
        self.server = secrets.token_hex(16)
        public, private = zmq.curve_keypair()
        self.secret = z85.decode(public).hex()
        stamp.remember(self.server, self.secret)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, _RECEIVE_QUEUE)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES + _CURVE_HEADER)
        self._socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        self._socket.curve_server = True
        self._socket.curve_secretkey = private
        self._monitor = self._watched()
        self._socket.bind(_address(self.server))
        self._is_woken = False
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = threading.Lock()
        self._closed = False
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._woken, zmq.POLLIN)
        self.empty = True
        """Whether the last :meth:`frames` has read all there was."""
        self.malformed = 0
        """Messages of workers that were no frames."""
        self.refused = 0
        """Connections that ended before they had proved to be of this server's workers."""

    def _watched(self) -> zmq.Socket[bytes]:
        address = f"inproc://monitor-{self.server}"
        self._socket.monitor(address, _REFUSALS)
        monitor = self._context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.RCVHWM, _REFUSALS_KEPT)
        monitor.connect(address)
        return monitor

    def wake(self) -> None:
        """Make a :meth:`wait` in another thread return. Any thread may call this, at any time."""
        if self._is_woken:  # by somebody else, and has not returned yet
            return
        with self._closing:
            if not self._closed:  # the descriptor may be another file's by then
                self._is_woken = True
                os.eventfd_write(self._woken, 1)

    def wait(self, timeout_s: float | None) -> None:
        """Wait until there is a frame, :meth:`wake` is called, or the time is over."""
        self._poller.poll(None if timeout_s is None else math.ceil(max(timeout_s, 0.0) * 1000))
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._woken)
        self._is_woken = False  # after the reading: who finds it set has appended before what is done next

    def frames(self) -> Iterator[Frame]:
        """What is here already, within bounds; then :attr:`empty` says whether that was all."""
        self.empty = False
        self._count_refused()
        left, fresh = _AT_ONCE_BYTES, 0
        for _ in range(_AT_ONCE):
            if left < MAX_BYTES:
                return
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                if fresh < _RECEIVE_QUEUE // 2 or not self._socket.poll(_REFILL_MS):
                    self.empty = True
                    return
                fresh = 0
                continue
            left -= len(data)
            fresh += 1
            try:
                yield decode(data)
            except FrameError:
                self.malformed += 1

    def _count_refused(self) -> None:
        with contextlib.suppress(zmq.Again):
            for _ in range(_REFUSALS_AT_ONCE):
                self._monitor.recv_multipart(zmq.NOBLOCK)
                self.refused += 1

    def close(self) -> None:
        """Close; frames that were not read are gone."""
        stamp.forget(self.server)
        self._socket.disable_monitor()
        self._context.destroy(0)
        with self._closing:
            self._closed = True
            os.close(self._woken)
