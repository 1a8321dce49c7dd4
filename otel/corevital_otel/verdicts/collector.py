"""The sequences of one answer whose caller asked for the verdict, and their reports as they come.

A context variable carries the collector from the answer's start to the engine's frontend, which admits the sequences
inside the request's own task. Reports come from the hub's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from corevital_otel.report import RequestReport
from corevital_otel.verdicts.wording import verdict


class Expected:
    """A sequence whose report is expected.

    Args:
        changed: called when the report is there, in the hub's thread.
    """

    __slots__ = ("_changed", "has_ended", "verdict")

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.has_ended = False
        """Whether the engine has ended it. Until then nobody waits for its report."""
        self.verdict: dict[str, Any] | None = None
        """What its report says; None: it is not there."""

    def report(self, report: RequestReport) -> None:
        """Its report is there. Called in the hub's thread."""
        self.verdict = verdict(report)
        self._changed()


class Collector:
    """What is expected of one answer. Used in the event loop's thread, but for what :class:`Expected` says."""

    __slots__ = ("_expected", "_is_measured", "_wake", "is_asked")

    def __init__(self) -> None:
        self.is_asked = False
        """Whether the caller has asked for the verdict, as far as is known by now."""
        self._is_measured = True
        self._expected: list[Expected] = []
        self._wake: Callable[[], object] | None = None

    def expect(self) -> Expected:
        """A sequence of a caller who asked has been admitted."""
        self.is_asked = True
        self._expected.append(expected := Expected(self._changed))
        return expected

    def give_up(self) -> None:
        """A sequence of a caller who asked is not measured."""
        self.is_asked, self._is_measured = True, False

    @property
    def is_due(self) -> bool:
        """Whether the reports of all sequences are on their way: they are measured, and have ended."""
        return self._is_measured and bool(self._expected) and self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether all sequences that have been admitted so far have ended."""
        return all(expected.has_ended for expected in self._expected)

    async def verdicts(self, timeout_s: float) -> list[dict[str, Any]] | None:
        """The verdicts on all sequences, in the order of the choices.

        Args:
            timeout_s: how long to wait for the last one.

        Returns:
            None where one is missing: it still runs, is not measured, or its report has not come in time.
        """
        if not self.is_due:
            return None
        if not self._is_complete():
            loop, done = asyncio.get_running_loop(), asyncio.Event()
            self._wake = lambda: loop.call_soon_threadsafe(done.set)
            if not self._is_complete():  # now that it is noticed
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(done.wait(), timeout_s)
        found = [expected.verdict for expected in self._expected if expected.verdict is not None]
        return sorted(found, key=lambda one: one["index"]) if len(found) == len(self._expected) else None

    def _is_complete(self) -> bool:
        return all(expected.verdict is not None for expected in self._expected)

    def _changed(self) -> None:
        wake = self._wake
        if wake is not None and self._is_complete():
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                wake()


CURRENT: Final[ContextVar[Collector | None]] = ContextVar("corevital_verdicts", default=None)
"""That of the request which is being served here; None where its answer cannot have the verdict on it."""
