"""Forwards what engines on other hosts send to a frontend on this host, whose socket only this host can reach."""

from __future__ import annotations

import time
from typing import Final

from corevital.frames import stamp
from corevital.frames.receiver import Transit
from corevital.frames.wire import Routes, is_here
from corevital.log import warn_once
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss

_LOOK_S: Final = 5.0
"""Between two checks whether a frontend still runs."""


class Relay:
    """Forwards messages. Create and use it in one thread.

    Args:
        counters: counts what cannot be forwarded.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._routes = Routes()
        self._seen: dict[str, tuple[bool, float]] = {}  # by server: whether it is on this host, and when checked

    def pass_on(self, message: Transit) -> None:
        """Forward a message, or count it as lost. Never waits."""
        if not self._is_here(message.server):
            self._counters.count_loss(Loss.FRAME_UNREACHABLE)
            warn_once(
                "unreachable",
                "a frame dropped: it is for a frontend that is not on this hub's host; run `corevital hub` on the "
                "frontend's host and set COREVITAL_HUB to it",
            )
            return
        stamp.remember(message.server, message.secret)
        route, _ = self._routes.to(message.server)
        if route is None or not self._routes.send(route, message.parts):
            self._counters.count_loss(Loss.RECORD_QUEUE_FULL)

    def _is_here(self, server: str) -> bool:
        known, looked_at = self._seen.get(server, (False, -_LOOK_S))
        now = time.monotonic()
        if now - looked_at >= _LOOK_S:
            if len(self._seen) >= 1024:
                self._seen.clear()
            known = is_here(server)
            self._seen[server] = known, now
        return known

    def close(self) -> None:
        """Deliver what is queued within a bound, then close."""
        self._routes.close()
