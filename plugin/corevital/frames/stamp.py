"""The stamp: how the worker knows whose logits it sees, and how it proves to the server that it belongs to it.

An engine shows logits without a request id, so the frontend sends a stamp along with each request, in a field that the
engine passes on to its workers. It names the server (whose frame address follows from it) and the sequence, and holds
the server's secret, without which its frames are refused. Stamps stay inside the engine: the adapter replaces what a
client sends in that field, and nothing echoes it. A stamp never holds an address: a forged one reaches at most an
abstract socket of this machine that does not exist.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_FORM: Final = re.compile(
    r"([0-9a-f]{32})(?:\.([0-9a-f]{64}))?(?:~([0-9a-f]{32}))?:([0-9a-f]{1,16})(?::([0-9]{1,9}))?(!)?\Z"
)

_MAX_SECRETS: Final = 256
"""Servers whose secrets a process remembers: API servers of one engine. The oldest is forgotten first."""

_secrets: dict[str, str] = {}


class Stamp(NamedTuple):
    """Whose logits they are.

    Attributes:
        server: the server's random id, 32 hex digits. It is public: the name of a socket.
        key: the sequence's, unsigned, 64 bits; 0: the frontend knows of it, and it is not to be measured.
        base: output tokens it had before its present prompt: more than 0 where input is streamed to a session.
        secret: the server's, 64 hex digits; empty: the process knows it already, or cannot send.
        proof: that a frontend of this deployment made it; see :meth:`corevital.frames.engine_key.EngineKey.proof`.
        urgent: somebody waits for its statistics: they are sent at once when it ends.
    """

    server: str
    key: int
    base: int = 0
    secret: str = ""
    proof: str = ""
    urgent: bool = False

    @property
    def is_left_out(self) -> bool:
        """Whether it says that its request is not to be measured."""
        return self.key == 0

    def __str__(self) -> str:
        server = self.server + (f".{self.secret}" if self.secret else "") + (f"~{self.proof}" if self.proof else "")
        return f"{server}:{self.key:x}" + (f":{self.base}" if self.base else "") + "!" * self.urgent

    def __repr__(self) -> str:
        return f"Stamp(server={self.server!r}, key={self.key}, base={self.base})"  # never log a secret


def peek(value: object) -> Stamp | None:
    """The stamp in a text, None where it is not one. A client may have made it."""
    match = _FORM.match(value) if isinstance(value, str) else None
    if match is None:
        return None
    server, secret, proof, key, base, urgent = match.groups("")
    return Stamp(server, int(key, 16), int(base or 0), secret, proof, bool(urgent))


def parse(value: object) -> Stamp | None:
    """The stamp in a text that no client can have made. The process then knows its server's secret."""
    stamp = peek(value)
    if stamp is not None and stamp.secret and _secrets.get(stamp.server) != stamp.secret:
        remember(stamp.server, stamp.secret)
    return stamp


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
