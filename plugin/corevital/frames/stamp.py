"""The stamp: how the worker knows whose logits it sees, and how it proves to the server that it belongs to it.

No logits-processor interface of vLLM carries a request id, so the frontend writes a stamp into the request's
``extra_args``. It names the server (whose frame address follows from it) and the sequence, and holds the server's
secret, without which nobody is listened to. Stamps stay inside the engine: the frontend strips what a client sends
under their key, and nothing echoes ``extra_args``. A stamp never holds an address: one that is forged reaches at most
an abstract socket of this machine that is not there.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

EXTRA_ARG: Final = "corevital"
"""The key in ``SamplingParams.extra_args``."""

_FORM: Final = re.compile(r"([0-9a-f]{32})(?:\.([0-9a-f]{64}))?:([0-9a-f]{1,16})(?::([0-9]{1,9}))?\Z")

_MAX_SECRETS: Final = 256
"""Servers whose secrets a process remembers: API servers of one engine; the oldest goes first."""

_secrets: dict[str, str] = {}


class Stamp(NamedTuple):
    """Whose logits they are.

    Attributes:
        server: the server's random id, 32 hex digits. It is public: the name of a socket.
        key: the sequence's, unsigned, 64 bits.
        base: output tokens it had before its present prompt: more than 0 where input is streamed to a session.
        secret: the server's, 64 hex digits; empty: the process knows it already, or cannot send.
    """

    server: str
    key: int
    base: int = 0
    secret: str = ""

    def __str__(self) -> str:
        server = f"{self.server}.{self.secret}" if self.secret else self.server
        return f"{server}:{self.key:x}" + (f":{self.base}" if self.base else "")

    def __repr__(self) -> str:
        return f"Stamp(server={self.server!r}, key={self.key}, base={self.base})"  # a secret is for no log


def parse(value: object) -> Stamp | None:
    """The stamp in an ``extra_args`` value, or None where there is none. The process then knows its server's secret."""
    match = _FORM.match(value) if isinstance(value, str) else None
    if match is None:
        return None
    server, secret, key, base = match.groups("")
    if secret and _secrets.get(server) != secret:
        remember(server, secret)
    return Stamp(server, int(key, 16), int(base or 0), secret)


def remember(server: str, secret: str) -> None:
    """Let senders in this process prove to ``server`` that they belong to it."""
    while len(_secrets) >= _MAX_SECRETS:
        _secrets.pop(next(iter(_secrets)), None)
    _secrets[server] = secret


def forget(server: str) -> None:
    """The server is gone."""
    _secrets.pop(server, None)


def secret_of(server: str) -> str | None:
    """The server's secret, None where this process has not seen a stamp of it."""
    return _secrets.get(server)
