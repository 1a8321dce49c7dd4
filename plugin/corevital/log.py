"""Our lines in the engine's log: one logger, one handler, and warnings that come once."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Final

LOGGER_NAME: Final = "corevital"

_lock = threading.Lock()
_said: set[str] = set()


def configure(formatter: logging.Formatter | None = None) -> None:
    """Give our logger a handler on stderr, unless the application has one for it already. Idempotent."""
    logger = logging.getLogger(LOGGER_NAME)
    with _lock:
        if not logger.handlers:
            logger.addHandler(logging.StreamHandler(sys.stderr))
            logger.handlers[0].setFormatter(logging.Formatter("corevital %(levelname)s: %(message)s"))
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
