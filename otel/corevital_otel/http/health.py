"""The hub's state, as ``/health`` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from corevital_otel import __version__

STUCK_S: Final = 10.0
"""A hub that has made no turn for so long is unhealthy. One that works makes two a second, and one after each error."""


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a hub at one moment.

    Attributes:
        uptime_s: seconds since its start.
        turned_s: seconds since its loop's last turn.
        running: sequences that have not ended.
        queue: events that wait for its loop.
        store_writable: whether its last write to the store succeeded; None: it has no store.
        losses: what was lost so far, by ``what`` and ``why`` of ``corevital.telemetry.dropped``.
        stopping: it takes in no more requests.
    """

    uptime_s: float
    turned_s: float
    running: int
    queue: int
    store_writable: bool | None = None
    losses: Mapping[tuple[str, str], int] = field(default_factory=dict)
    stopping: bool = False

    @property
    def status(self) -> str:
        """``ok``, ``stopping`` or ``stuck``."""
        if self.stopping:
            return "stopping"
        return "stuck" if self.turned_s > STUCK_S else "ok"

    def as_json(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {
            "status": self.status,
            "version": __version__,
            "uptime_s": round(self.uptime_s, 3),
            "sequences_running": self.running,
            "queue": self.queue,
            "store_writable": self.store_writable,
            "losses": [
                {"what": what, "why": why, "count": count} for (what, why), count in sorted(self.losses.items())
            ],
        }
