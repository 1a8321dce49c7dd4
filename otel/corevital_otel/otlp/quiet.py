"""Keeps what the OTLP exporters' libraries log about an export out of the log; one clear line of ours replaces it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LIBRARIES: Final = ("opentelemetry", "urllib3", "requests", "grpc", "httpx", "httpcore")
_MOST_LINES: Final = 20
_MOST_CHARACTERS: Final = 2_000

_here = threading.local()
"""``lines``: those of the block that this thread is in, else None."""
_seen = 0


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        lines: list[str] | None = getattr(_here, "lines", None)
        if lines is None:
            return True
        if len(lines) < _MOST_LINES:
            lines.append(record.getMessage()[:_MOST_CHARACTERS])
        return False


_FILTER: Final = _Quiet()


@contextmanager
def quieted() -> Iterator[list[str]]:
    """Within the block, what the exporters' libraries log on this thread goes into the list instead of the log.

    The lines may hold secrets: :func:`corevital_otel.otlp.redact.foreign` makes them fit to be logged.
    """
    _add_filter()
    lines: list[str] = []
    before = getattr(_here, "lines", None)
    _here.lines = lines
    try:
        yield lines
    finally:
        _here.lines = before


def _add_filter() -> None:
    """Put the filter on every logger of these libraries: a filter does not see the records of child loggers."""
    global _seen  # noqa: PLW0603 - loggers are those of the process
    known = logging.root.manager.loggerDict
    if len(known) != _seen:
        _seen = len(known)
        for name in list(known):
            if name.partition(".")[0] in _LIBRARIES:
                logging.getLogger(name).addFilter(_FILTER)  # adding it twice does nothing
