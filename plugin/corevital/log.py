"""Our lines in the engine's log: one logger, one handler, warnings that come once, and JSON where it is asked for."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, Final

from corevital.text import printable, printable_json, printable_lines

LOGGER_NAME: Final = "corevital"
FORMAT_VARIABLE: Final = "COREVITAL_LOG_FORMAT"
"""``json`` here reaches worker processes too, which read no other settings."""

_lock = threading.Lock()
_said: set[str] = set()
_request: ContextVar[dict[str, str] | None] = ContextVar("corevital_request", default=None)


@contextmanager
def about(request_id: str, trace_id: str = "") -> Iterator[dict[str, str]]:
    """Lines within the block are about this request. Yields their fields, for what becomes known on the way."""
    fields = {"request_id": request_id, **({"trace_id": trace_id} if trace_id else {})}
    token = _request.set(fields)
    try:
        yield fields
    finally:
        _request.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, ``process``; ``request_id`` and ``trace_id`` where the
    line is about a request; ``exception`` where there is one, its lines in one string.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        fields: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
            **(_request.get() or {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return printable_json(json.dumps(fields, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """One line a record, whatever text of others is in it; then the traceback, where there is one."""

    def __init__(self) -> None:
        super().__init__("corevital %(levelname)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """The traceback's lines."""
        return printable_lines(super().formatException(ei))


class _WholeLines(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes each line at once, past what the engine may have put around ``sys.stderr``.

    Older vLLM puts the process's name before every line there, and what has text before it is no JSON.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
            os.write(sys.stderr.fileno(), line)
        except (OSError, ValueError, AttributeError):  # stderr is closed, or no file
            super().emit(record)


def configure(formatter: logging.Formatter | None = None) -> None:
    """Give our logger a handler on stderr, unless the application has one for it already. Idempotent.

    Args:
        formatter: for the lines; by default what :data:`FORMAT_VARIABLE` says.
    """
    logger = logging.getLogger(LOGGER_NAME)
    wants_json = os.environ.get(FORMAT_VARIABLE) == "json"
    if formatter is None and wants_json:
        formatter = JsonFormatter()
    with _lock:
        if not logger.handlers:
            logger.addHandler(_WholeLines(sys.stderr) if wants_json else logging.StreamHandler(sys.stderr))
            logger.handlers[0].setFormatter(TextFormatter())
            logger.setLevel(logging.INFO)
            logger.propagate = False
        if formatter is not None:
            for handler in logger.handlers:
                handler.setFormatter(formatter)


def warn_once(key: str, message: str, *args: object, exc_info: bool = False) -> None:
    """Log a warning the first time ``key`` is seen in this process, and never again."""
    with _lock:
        if key in _said:
            return
        _said.add(key)
    logging.getLogger(LOGGER_NAME).warning(message, *args, exc_info=exc_info)
