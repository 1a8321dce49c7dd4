"""The hub's socket: receives what workers and engine cores send, within bounds, and answers the cores."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import zmq

from corevital.frames import events, stamp
from corevital.frames.engine_key import HubIdentity, engine_key, identity_of
from corevital.frames.layout import Frame, FrameError, FrameVersionError, decode
from corevital.frames.wire import PASS_ON, address, guard, passed_on
from corevital.log import warn_once

_RECEIVE_QUEUE: Final = 64
"""Messages of one peer that a receiver holds at most."""

MOST_BYTES: Final = 4 << 20
"""Of one part of a message: enough for a sequence of a million tokens. Frames are 256 KiB at most."""

_AT_ONCE_BYTES: Final = 16 << 20
_AT_ONCE: Final = 4096
"""What one call of :meth:`Receiver.messages` hands out: bytes, and messages."""

_REFILL_MS: Final = 2
"""How long a receiver that has emptied its queue waits for what the kernel and the workers hold behind it."""

_REFUSALS: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_REFUSALS_KEPT: Final = 100_000
"""Refused connections that wait to be counted, a hundred bytes each; libzmq blocks when there are more."""
_REFUSALS_AT_ONCE: Final = 1000

_CURVE_HEADER: Final = 64
"""What CurveZMQ adds to a message, generously."""


@dataclass(frozen=True, slots=True)
class Letter:
    """Events of an engine core.

    Attributes:
        client: the sender, for :meth:`Receiver.answer`.
        body: its JSON and its tokens; see :mod:`corevital.frames.events`.
    """

    client: bytes
    body: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Transit:
    """A message from another host for a frontend on this one: the frontend's id, its secret, and the message."""

    server: str
    secret: str
    parts: Sequence[bytes]


class Receiver:
    """Binds on creation; its :attr:`server` id, :attr:`secret` and :attr:`proof` go into the stamps.

    It holds at most 64 messages for each peer that is connected, and hands out 16 MiB in one call. A peer that does not
    know the secret takes a file descriptor and at most :data:`MOST_BYTES` until its handshake fails or 30 seconds are
    over; nothing but the process's limit of open files bounds how many there can be.

    Args:
        identity: of a hub process; by default a new one.

    Raises:
        RuntimeError: pyzmq was built without CurveZMQ.
        OSError: the address is in use, or does not belong to this host.
    """

    def __init__(self, identity: HubIdentity | None = None) -> None:
        if not zmq.has("curve"):
            raise RuntimeError("this pyzmq was built without CurveZMQ: install the one from PyPI")
        identity = identity or identity_of(secrets.token_hex(16), zmq.curve_keypair()[1])
        self.server, self.secret = identity.server, identity.secret
        self.proof = engine_key().proof(self.server)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.RCVHWM, _RECEIVE_QUEUE)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MOST_BYTES + _CURVE_HEADER)
        self._socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.curve_server = True
        self._socket.curve_secretkey = identity.private
        self._monitor = self._watched()
        try:
            self._socket.bind(address(self.server))
            if identity.tcp is not None:
                guard(self._socket)
                self._socket.bind(identity.tcp)
        except zmq.ZMQError as error:
            self._socket.disable_monitor()
            self._context.destroy(0)
            raise OSError(error.errno, os.strerror(error.errno or 0)) from error
        stamp.remember(self.server, self.secret)
        self._is_woken = False
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = threading.Lock()
        self._closed = False
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._woken, zmq.POLLIN)
        self.empty = True
        """Whether the last :meth:`messages` has read all there was."""
        self.malformed = 0
        """Messages that could not be read."""
        self.other_version = 0
        """Frames and events of processes that run another version of corevital."""
        self.refused = 0
        """Connections that failed the handshake: the peer lacks this deployment's key."""

    def _watched(self) -> zmq.Socket[bytes]:
        name = f"inproc://monitor-{self.server}"
        self._socket.monitor(name, _REFUSALS)
        monitor = self._context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.RCVHWM, _REFUSALS_KEPT)
        monitor.connect(name)
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
        """Wait until there is a message, :meth:`wake` is called, or the time is over."""
        self._poller.poll(None if timeout_s is None else math.ceil(max(timeout_s, 0.0) * 1000))
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._woken)
        self._is_woken = False  # after the read: a caller that finds it set has appended before what follows

    def messages(self) -> Iterator[Frame | Letter | Transit]:
        """What has arrived, within bounds; afterwards :attr:`empty` says whether that was all."""
        self.empty = False
        self._count_refused()
        left, fresh = _AT_ONCE_BYTES, 0
        for _ in range(_AT_ONCE):
            if left < MOST_BYTES:
                return
            try:
                client, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                if fresh < _RECEIVE_QUEUE // 2 or not self._socket.poll(_REFILL_MS):
                    self.empty = True
                    return
                fresh = 0
                continue
            left -= sum(map(len, parts))
            fresh += 1
            message = self._read(client, parts)
            if message is not None:
                yield message

    def _read(self, client: bytes, parts: list[bytes]) -> Frame | Letter | Transit | None:
        head = parts[0] if parts else b""
        if head.startswith(events.MAGIC):
            return Letter(client, parts)
        if head.startswith(PASS_ON) and len(parts) > 1 and (goal := passed_on(head)) is not None:
            return Transit(*goal, parts[1:])
        try:
            if len(parts) == 1:
                return decode(head)
        except FrameVersionError as error:
            self.other_version += 1
            warn_once(
                "frame version",
                "frames dropped (%s): worker and server run different versions of corevital: restart both",
                error,
            )
            return None
        except FrameError:
            pass
        self.malformed += 1
        return None

    def answer(self, client: bytes, *parts: bytes) -> None:
        """Send an engine core an answer; dropped if the core is gone or its queue is full. Never waits."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([client, *parts], zmq.NOBLOCK)

    def _count_refused(self) -> None:
        with contextlib.suppress(zmq.Again):
            for _ in range(_REFUSALS_AT_ONCE):
                self._monitor.recv_multipart(zmq.NOBLOCK)
                self.refused += 1

    def close(self) -> None:
        """Close; unread messages are dropped."""
        stamp.forget(self.server)
        self._socket.disable_monitor()
        self._context.destroy(0)
        with self._closing:
            self._closed = True
            os.close(self._woken)
