"""The engine key: what the processes of one deployment share, so that they know each other's stamps and their hub.

The process that starts the engine creates the key, and its children inherit it in :data:`VARIABLE`. Where
``COREVITAL_HUB`` and ``COREVITAL_HUB_KEY`` are set, it is derived from them, so all hosts that have both share it.

Two things are derived from the key (HMAC-SHA256, each with its own label): the proof in a stamp, which no client can
make; and the identity of the deployment's hub process, which stays the same after a restart by any process.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from typing import Final, NamedTuple

import zmq
from zmq.utils import z85

VARIABLE: Final = "COREVITAL_ENGINE_KEY"
"""64 hex digits, then ``:headless`` if the frontend may be on another host. Internal: users do not set it."""
HUB: Final = "COREVITAL_HUB"
HUB_KEY: Final = "COREVITAL_HUB_KEY"
_HEADLESS: Final = ":headless"


class HubIdentity(NamedTuple):
    """How a hub is found and authenticated.

    Attributes:
        server: its id, 32 hex digits.
        secret: its public Curve key, 64 hex digits; the hub accepts only peers that know it.
        private: its private Curve key, Z85.
        tcp: ``tcp://host:port`` where other hosts reach it; None: only this host does.
    """

    server: str
    secret: str
    private: bytes
    tcp: str | None = None

    def __repr__(self) -> str:
        return f"HubIdentity(server={self.server!r}, tcp={self.tcp!r})"  # never log a secret


def identity_of(server: str, private: bytes, tcp: str | None = None) -> HubIdentity:
    """The identity with this id and private key."""
    return HubIdentity(server, z85.decode(zmq.curve_public(private)).hex(), private, tcp)


class EngineKey(NamedTuple):
    """The key of this process's deployment.

    Attributes:
        key: 32 bytes.
        hub: the identity of its hub process.
        trusts_unproven: a stamp whose proof cannot be checked may be from a frontend on another host. If False, such a
            stamp is a client's.
    """

    key: bytes
    hub: HubIdentity
    trusts_unproven: bool

    def proof(self, server: str) -> str:
        """The proof that the frontend ``server`` of this deployment made a stamp: 32 hex digits."""
        return _derived(self.key, f"stamp {server}").hex()[:32]

    def __repr__(self) -> str:
        return f"EngineKey(hub={self.hub!r})"


def share(*, headless: bool) -> None:
    """Create a key for the processes that this one starts, unless there is one. Idempotent.

    Args:
        headless: the frontend is on another host, and without ``COREVITAL_HUB`` has another key.
    """
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = secrets.token_hex(32) + (_HEADLESS if headless else "")


def engine_key(env: Mapping[str, str] = os.environ) -> EngineKey:
    """The key of this process; a random one if it inherited none, such as in a Ray actor."""
    hub, hub_key = env.get(HUB, "").strip(), env.get(HUB_KEY, "").strip()
    if hub and hub_key:
        return _from_hub(hub, hub_key)
    return _from_parent(env.get(VARIABLE, ""))


@functools.cache
def _from_hub(hub: str, hub_key: str) -> EngineKey:
    key = _derived(hub_key.encode(errors="surrogateescape"), f"engine {hub}")
    return _of(key, hub, trusts_unproven=False)


@functools.cache
def _from_parent(given: str) -> EngineKey:
    digits, headless, _ = given.partition(_HEADLESS)
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) != 32:
        return _of(secrets.token_bytes(32), None, trusts_unproven=True)
    return _of(key, None, trusts_unproven=bool(headless))


def _of(key: bytes, tcp: str | None, *, trusts_unproven: bool) -> EngineKey:
    identity = identity_of(_derived(key, "hub").hex()[:32], z85.encode(_derived(key, "curve")), tcp)
    return EngineKey(key, identity, trusts_unproven)


def _derived(key: bytes, label: str) -> bytes:
    return hmac.new(key, label.encode(), hashlib.sha256).digest()
