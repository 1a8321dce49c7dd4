"""What is kept of a request: strings cut to a length, and of content as much as memory allows."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Final

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport

_CONTENT_BYTES: Final = 64 << 20
"""Content of sequences that are not reported yet. Only ``COREVITAL_CAPTURE_CONTENT=1`` has any."""


class Intake:
    """Cuts what comes in, and counts the content that is held. Any thread may call.

    Args:
        counters: takes content that was left out.
        content_bytes: that may be held.
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
        """These are no longer held."""
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
        self._counters.add(names.DROPPED, what="content", why="too_much")
        return False


def _size(text: str | None) -> int:
    """Bytes that a text takes at most; the same for the same text, whatever is done with it meanwhile."""
    return 0 if text is None else len(text) if text.isascii() else 8 * len(text)


def without_content(report: RequestReport) -> RequestReport:
    """The report for the store, which never has content."""
    if report.admitted.prompt_text is None and report.outcome.text is None:
        return report
    return replace(
        report, admitted=replace(report.admitted, prompt_text=None), outcome=replace(report.outcome, text=None)
    )
