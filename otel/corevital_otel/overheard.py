"""Keeps what a library logs of a call of ours out of the log: one clear line of ours stands for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_here = threading.local()
"""``said``: the lines of the block that this thread is inside of, else None."""


class _Overheard(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        said: list[str] | None = getattr(_here, "said", None)
        if said is None:
            return True
        said.append(record.getMessage())
        return False


_FILTER = _Overheard()


@contextmanager
def overheard(loggers: Sequence[str]) -> Iterator[list[str]]:
    """What these loggers say on this thread within the block goes into the list instead of the log."""
    for name in loggers:
        logging.getLogger(name).addFilter(_FILTER)  # the same one again is not added
    said: list[str] = []
    _here.said = said
    try:
        yield said
    finally:
        _here.said = None
