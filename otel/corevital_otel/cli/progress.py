"""A progress line for what takes long."""

from __future__ import annotations

import sys
import time
from typing import Final

_SHOW_EVERY_S: Final = 1.0


class Progress:
    """A progress line on a terminal, erased at the end."""

    def __init__(self) -> None:
        self._shown_at = time.monotonic()
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)  # noqa: T201

    def show(self, text: str) -> None:
        """Show ``text``, at most once a second."""
        now = time.monotonic()
        if now - self._shown_at >= _SHOW_EVERY_S and sys.stderr.isatty():
            self._shown_at = now
            self._width = max(self._width, len(text))
            print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)  # noqa: T201
