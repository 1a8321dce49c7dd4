"""The stamp: how the worker knows whose logits it sees.

No logits-processor interface of vLLM carries a request id, so the frontend writes a stamp into the request's
``extra_args``. It names the server (whose frame address follows from it) and the sequence. It never holds an
address: a client that forges one reaches at most an abstract socket of this machine that is not there.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

EXTRA_ARG: Final = "corevital"
"""The key in ``SamplingParams.extra_args``."""

_FORM: Final = re.compile(r"([0-9a-f]{32}):([0-9a-f]{1,16})(?::([0-9]{1,9}))?\Z")


class Stamp(NamedTuple):
    """Whose logits they are.

    Attributes:
        server: the server's random id, 32 hex digits.
        key: the sequence's, unsigned, 64 bits.
        base: output tokens it had before its present prompt: more than 0 where input is streamed to a session.
    """

    server: str
    key: int
    base: int = 0

    def __str__(self) -> str:
        return f"{self.server}:{self.key:x}" + (f":{self.base}" if self.base else "")


def parse(value: object) -> Stamp | None:
    """The stamp in an ``extra_args`` value, or None where there is none."""
    match = _FORM.match(value) if isinstance(value, str) else None
    return Stamp(match[1], int(match[2], 16), int(match[3] or 0)) if match else None
