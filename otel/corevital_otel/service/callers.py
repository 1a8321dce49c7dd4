"""The callers who wait for the verdict on their answers, as the hub's loop sees them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from corevital.frames.lifecycle import NO_VERDICT, Admitted
from corevital.log import warn_once
from corevital_otel.report import RequestReport
from corevital_otel.verdicts.answer import LONGEST_WAIT_S
from corevital_otel.verdicts.collector import CURRENT, Collector, Expected


class Callers:
    """Sequences whose callers want the verdict: running ones, and ended ones whose reports they wait for.

    The frontend's thread calls :meth:`admit` and :meth:`ended`; the hub's all else.
    """

    def __init__(self) -> None:
        self._running: dict[int, Expected] = {}  # by key
        self._awaited: dict[Expected, float] = {}  # and until when
        self._hurried = threading.Event()

    @staticmethod
    def collector(request: Admitted) -> Collector | None:
        """That of the answer which is being made here, if its caller asked.

        Returns:
            None where nobody asked; or, after one warning, where the answer cannot have the verdict on it.
        """
        collector = CURRENT.get() if request.verdict else None
        if request.verdict and collector is None:
            warn_once("verdict", NO_VERDICT, "this request did not come to a Python API server")
        return collector

    def admit(self, key: int, collector: Collector) -> Callable[[RequestReport], None]:
        """A sequence of such a caller is admitted. Returns what its report is to be handed to."""
        self._running[key] = expected = collector.expect()
        return expected.report

    def ended(self, key: int) -> Expected | None:
        """A sequence has ended; None where nobody waits for its report."""
        expected = self._running.pop(key, None)
        if expected is not None:
            expected.has_ended = True
            self.hurry()
        return expected

    def hurry(self) -> None:
        """End a :meth:`pause`."""
        self._hurried.set()

    def wait_for(self, expected: Expected | None) -> None:
        """The hub has read the end of a sequence."""
        if expected is not None and expected.verdict is None:
            self._awaited[expected] = time.monotonic() + LONGEST_WAIT_S

    def pause(self, seconds: float) -> None:
        """Wait this long, or until :meth:`hurry`; not while a caller waits."""
        if self._awaited:
            now = time.monotonic()
            self._awaited = {each: end for each, end in self._awaited.items() if each.verdict is None and now < end}
        if not self._awaited:
            self._hurried.wait(seconds)
        self._hurried.clear()
