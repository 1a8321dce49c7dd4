"""Random ids from the system's generator, many at a time: each read costs a system call.

They do not touch the process's random numbers, which a script or an engine may have seeded.
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Final

from opentelemetry.sdk.trace.id_generator import IdGenerator

_BYTES: Final = 4096

_lock = threading.Lock()
_stock, _used = b"", 0


def random_id(size: int) -> int:
    """A random number of ``size`` bytes, at most 16, that is not 0. Any thread may call."""
    global _stock, _used  # noqa: PLW0603 - one for the process
    with _lock:
        if _used + size > len(_stock):
            _stock, _used = os.urandom(_BYTES), 0
        _used += size
        found = _stock[_used - size : _used]
    return int.from_bytes(found, "big") or random_id(size)


def trace_of(key: int) -> int:
    """The id of the trace that a random key of 8 bytes names: as random, and always the same."""
    return int.from_bytes(hashlib.blake2b(key.to_bytes(8, "big"), digest_size=16).digest(), "big")


def _forget() -> None:
    """A forked process must not hand out its parent's ids."""
    global _stock, _lock
    _stock, _lock = b"", threading.Lock()


os.register_at_fork(after_in_child=_forget)


class RandomIds(IdGenerator):
    """Ids of spans and traces."""

    def generate_span_id(self) -> int:
        """8 bytes."""
        return random_id(8)

    def generate_trace_id(self) -> int:
        """16 bytes."""
        return random_id(16)
