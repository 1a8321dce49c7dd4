"""Messages between the processes of a deployment: ZeroMQ DEALER to ROUTER, encrypted and authenticated by CurveZMQ.

A hub listens on an abstract Unix socket, which has no file, so a killed process leaves nothing behind. The name holds
the hub's 128-bit id, so several hubs on one machine do not mix. With ``COREVITAL_HUB`` the hub process also listens on
TCP, for engines on other hosts, and forwards what they send to a frontend on its own host.

The names are public, so a hub accepts only peers that know its Curve key: any other connection fails in the handshake,
before a message is read, and is counted.

The first four bytes of a message are its type: a frame (:mod:`corevital.frames.layout`), events
(:mod:`corevital.frames.events`), or either of them to be forwarded. The first part of the latter is :data:`PASS_ON`,
the id of the server it is for, and that server's secret.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import zmq

from corevital.frames import stamp
from corevital.frames.engine_key import HubIdentity, engine_key

PASS_ON: Final = b"CVR1"

SEND_QUEUE: Final = 512
"""Messages for one hub that a sender holds at most: seconds of decoding, and at most 128 MiB of frames."""

LINGER_MS: Final = 300
"""How long a process that shuts down may still deliver."""

_MAX_SERVERS: Final = 64
"""Hubs that one process keeps connections to; the least recently used is closed first."""

_RECONNECT_MS: Final = (100, 1000)
"""First and longest pause before a sender tries again to reach a hub."""

_CONNECT_TIMEOUT_MS: Final = 5000
_HEARTBEAT_MS: Final = 10_000
"""Of TCP connections: a host that has vanished is noticed."""


def address(server: str) -> str:
    """Where a server listens on its own host."""
    return f"ipc://@corevital-{server}"


def is_here(server: str) -> bool:
    """Whether a server listens on this host (in this network namespace)."""
    name = address(server).removeprefix("ipc://")
    try:
        return any(line.endswith(name) for line in Path("/proc/net/unix").read_text().splitlines())
    except OSError:  # no Linux, or hidden
        return True


def guard(socket: zmq.Socket[bytes]) -> None:
    """Make a TCP connection notice that the other host has vanished."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2 * _HEARTBEAT_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT_MS)


class Route:
    """A connection to a server, direct or through the hub, and the parts that go in front of each message."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], server: str, secret: str) -> None:
        hub = engine_key().hub
        own = server == hub.server
        relayed = not own and hub.tcp is not None and not is_here(server)
        self.prefix: list[bytes] = [PASS_ON + f"{server}{secret}".encode()] if relayed else []
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        self.socket.setsockopt(zmq.LINGER, LINGER_MS)
        # a busy machine, or a peer that only connects, may make the first attempt fail; the handshake reveals nothing
        # to a process that has taken the name of a server that is gone
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS[0])
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS[1])
        self.socket.curve_serverkey = bytes.fromhex(hub.secret if relayed else secret)
        self.socket.curve_publickey, self.socket.curve_secretkey = zmq.curve_keypair()
        if hub.tcp is not None and (own or relayed):
            guard(self.socket)
            self.socket.setsockopt(zmq.IPV6, 1)
            self.socket.connect(hub.tcp)
        else:
            self.socket.connect(address(server))


class Routes:
    """Connections to servers. Create it in the process and the thread that use it."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._routes: OrderedDict[str, Route] = OrderedDict()

    def __contains__(self, server: object) -> bool:
        return server in self._routes

    def __len__(self) -> int:
        return len(self._routes)

    def to(self, server: str) -> tuple[Route | None, list[str]]:
        """The route to a server, None if its secret is unknown; and the servers whose connections it has closed."""
        route, closed = self._routes.get(server), []
        if route is None:
            secret = stamp.secret_of(server)
            if secret is None:  # it is gone, or never started
                return None, []
            route = self._routes[server] = Route(self._context, server, secret)
            while len(self._routes) > _MAX_SERVERS:
                gone, oldest = self._routes.popitem(last=False)
                oldest.socket.close(0)
                closed.append(gone)
        self._routes.move_to_end(server)
        return route, closed

    def send(self, route: Route, parts: Sequence[bytes]) -> bool:
        """Send a message. Returns False, without waiting, if the queue is full."""
        try:
            route.socket.send_multipart([*route.prefix, *parts], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Deliver what is queued within a bound, then close."""
        self._context.destroy(LINGER_MS)


def passed_on(part: bytes) -> tuple[str, str] | None:
    """The id and the secret of the server that a message is to be forwarded to; None for other messages."""
    text = part[len(PASS_ON) :].decode("ascii", "replace")
    if not part.startswith(PASS_ON) or len(text) != 32 + 64:
        return None
    return (text[:32], text[32:]) if all(char in "0123456789abcdef" for char in text) else None


def remember_hub() -> HubIdentity:
    """The identity of the deployment's hub process. From now on this process can send to it."""
    hub = engine_key().hub
    stamp.remember(hub.server, hub.secret)
    return hub
