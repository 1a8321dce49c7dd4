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

_FORM: Final = re.compile(r"([0-9a-f]{32}):([0-9a-f]{1,16})\Z")


class Stamp(NamedTuple):
    """A server's random id (32 hex digits) and a sequence's key (unsigned, 64 bits)."""

    server: str
    key: int

    def __str__(self) -> str:
        return f"{self.server}:{self.key:x}"


def parse(value: object) -> Stamp | None:
    """The stamp in an ``extra_args`` value, or None where there is none."""
    match = _FORM.match(value) if isinstance(value, str) else None
    return Stamp(match[1], int(match[2], 16)) if match else None
