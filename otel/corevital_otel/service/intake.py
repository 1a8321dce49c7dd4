"""What is kept of a request: strings cut to a length, and content within a memory bound."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Final

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss

_CONTENT_BYTES: Final = 64 << 20
"""Content of sequences that are not reported yet. Only ``COREVITAL_CAPTURE_CONTENT=1`` has any."""


class Intake:
    """Cuts strings, and bounds the content that is held. Any thread may call.

    Args:
        counters: counts content that was left out.
        content_bytes: content that may be held.
    """

    def __init__(self, counters: Counters, content_bytes: int = _CONTENT_BYTES) -> None:
        self._counters = counters
        self._most = content_bytes
        self._held = 0
        self._lock = threading.Lock()

    def admitted(self, request: Admitted) -> Admitted:
        """The request, fit to be kept."""
        kept = request.bounded(names.CONTENT_CHARACTERS)
        return kept if self._holds(kept.prompt_text) else replace(kept, prompt_text=None)

    def finished(self, outcome: Finished) -> Finished:
        """The end, fit to be kept."""
        kept = outcome.bounded(names.CONTENT_CHARACTERS)
        return kept if self._holds(kept.text) else replace(kept, text=None)

    def release(self, *texts: str | None) -> None:
        """These texts are no longer held."""
        if size := sum(map(_size, texts)):
            with self._lock:
                self._held -= size

    def _holds(self, text: str | None) -> bool:
        if text is None:
            return True
        size = _size(text)
        with self._lock:
            if self._held + size <= self._most:
                self._held += size
                return True
        self._counters.count_loss(Loss.CONTENT_TOO_MUCH)
        return False


def _size(text: str | None) -> int:
    """Upper bound of a text's bytes in memory; always the same for the same text."""
    return 0 if text is None else len(text) if text.isascii() else 8 * len(text)
