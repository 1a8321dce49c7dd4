"""Keeps what the OTLP exporters log of an export of ours out of the log: one clear line of ours stands for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LIBRARIES: Final = ("opentelemetry", "urllib3", "requests", "grpc")
_MOST_LINES: Final = 20
_MOST_CHARACTERS: Final = 2_000

_here = threading.local()
"""``said``: the lines of the block that this thread is inside of, else None."""
_seen = 0


class _Overheard(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        said: list[str] | None = getattr(_here, "said", None)
        if said is None:
            return True
        if len(said) < _MOST_LINES:
            said.append(record.getMessage()[:_MOST_CHARACTERS])
        return False


_FILTER: Final = _Overheard()


@contextmanager
def overheard() -> Iterator[list[str]]:
    """What the exporters' libraries log on this thread within the block goes into the list instead of the log.

    The lines may hold secrets: :func:`corevital_otel.redact.foreign` makes them fit to be logged.
    """
    _listen()
    said: list[str] = []
    before = getattr(_here, "said", None)
    _here.said = said
    try:
        yield said
    finally:
        _here.said = before


def _listen() -> None:
    """Put the filter on every logger of these libraries: a filter does not hear the loggers below its own."""
    global _seen  # noqa: PLW0603 - loggers are those of the process
    known = logging.root.manager.loggerDict
    if len(known) != _seen:
        _seen = len(known)
        for name in list(known):
            if name.partition(".")[0] in _LIBRARIES:
                logging.getLogger(name).addFilter(_FILTER)  # the same one again is not added
