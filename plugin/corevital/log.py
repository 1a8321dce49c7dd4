"""corevital's lines in the engine's log: one logger, one handler, warnings that are logged once, JSON on request."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from corevital.text import printable, printable_json, printable_lines

LOGGER_NAME: Final = "corevital"
FORMAT_VARIABLE: Final = "COREVITAL_LOG_FORMAT"
"""Worker processes read this variable too, and no other setting."""

LAUNCHER_VARIABLE: Final = "COREVITAL_LOG_LAUNCHER"
"""Set in a process whose launcher shows only lines of standard output that are JSON as loguru writes it, and inherited
by its hub. Internal: users do not set it."""

_lock = threading.Lock()
_logged: set[str] = set()
_request: ContextVar[dict[str, str] | None] = ContextVar("corevital_request", default=None)


@contextmanager
def about(request_id: str, trace_id: str = "") -> Iterator[dict[str, str]]:
    """Add this request's ids to the lines logged within the block. Yields the fields, to add more."""
    fields = {"request_id": request_id, **({"trace_id": trace_id} if trace_id else {})}
    token = _request.set(fields)
    try:
        yield fields
    finally:
        _request.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object per line.

    ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, ``process``; ``request_id`` and ``trace_id`` where the
    line is about a request; ``exception`` with the traceback, if any, as one string.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        moment = datetime.fromtimestamp(record.created, UTC)
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
    """One line per record, even with untrusted text in it; then the traceback, if any."""

    def __init__(self) -> None:
        super().__init__("corevital %(levelname)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """The traceback's lines."""
        return printable_lines(super().formatException(ei))


class _LauncherFormatter(logging.Formatter):
    """Another formatter's line in as much of loguru's JSON as a launcher reads.

    Args:
        inner: that formatter.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        return json.dumps({"text": f"{self._inner.format(record)}\n", "record": {"level": {"name": record.levelname}}})


class _WholeLines(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes each line in one call, past any wrapper of ``sys.stderr`` or ``sys.stdout``.

    Some engines prefix every line of ``sys.stderr`` with the process's name, which breaks JSON.

    Args:
        name: of the stream.
    """

    def __init__(self, name: str) -> None:
        super().__init__(getattr(sys, name))
        self._name = name

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
            os.write(getattr(sys, self._name).fileno(), line)
        except (OSError, ValueError, AttributeError):  # stderr is closed, or not a file
            super().emit(record)


def configure(formatter: logging.Formatter | None = None) -> None:
    """Give the logger a handler on stderr, unless the application gave it one. Idempotent.

    Args:
        formatter: of the lines; by default from :data:`FORMAT_VARIABLE`.
    """
    logger = logging.getLogger(LOGGER_NAME)
    wants_json = os.environ.get(FORMAT_VARIABLE) == "json"
    has_launcher = LAUNCHER_VARIABLE in os.environ
    if formatter is None and wants_json:
        formatter = JsonFormatter()
    if has_launcher:
        formatter = _LauncherFormatter(formatter or TextFormatter())
    with _lock:
        if not logger.handlers:
            in_one = wants_json or has_launcher
            stream = "stdout" if has_launcher else "stderr"
            logger.addHandler(_WholeLines(stream) if in_one else logging.StreamHandler(sys.stderr))
            logger.handlers[0].setFormatter(TextFormatter())
            logger.setLevel(logging.INFO)
            logger.propagate = False
        if formatter is not None:
            for handler in logger.handlers:
                handler.setFormatter(formatter)


def show_through_launcher() -> None:
    """Write lines, of this process and those it starts, so that a launcher shows them that reads loguru's JSON."""
    os.environ[LAUNCHER_VARIABLE] = "1"


def warn_once(key: str, message: str, *args: object, exc_info: bool = False) -> None:
    """Log a warning once per ``key`` and process."""
    with _lock:
        if key in _logged:
            return
        _logged.add(key)
    logging.getLogger(LOGGER_NAME).warning(message, *args, exc_info=exc_info)
