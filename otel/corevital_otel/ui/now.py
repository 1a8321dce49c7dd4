"""What a server runs now, as the page shows it. Who reads the server gives it: :mod:`corevital_otel.cli.live`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from corevital_otel.ui import pictures

HIGH: Final = 0.05
"""A share of high-risk requests from which on it is coloured."""


class NotReachedError(Exception):
    """No server can be read. The text is one line that names the cause and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNow:
    """A model over the last minute; None: nothing ended, or a single reading.

    Attributes:
        name: of the model.
        running, looping: sequences.
        requests_s, tokens_s: a second.
        first_token_s: 95th percentile of the time to the first token, seconds.
        risk: 95th percentile of the score.
        high: share of ended requests at high risk.
        entropy: mean, bits.
    """

    name: str
    running: float
    looping: float
    requests_s: float | None
    tokens_s: float | None
    first_token_s: float | None
    risk: float | None
    high: float | None
    entropy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """A server over the last minute.

    Attributes:
        server: its address, without secrets.
        seconds: from the oldest reading to the newest.
        models: the busiest first.
        total: of all models together.
        flags, warnings, finished: counts of the last minute by name.
        alarmed: sequences that run beyond the alarm's threshold.
        lost, errors, waiting: of the telemetry.
        lag_s: 95th percentile of the time to a report, seconds.
        history: running sequences at each reading, the oldest first.
        trouble: why the last reading failed; "" if it did not.
    """

    server: str
    seconds: float
    models: Sequence[ModelNow]
    total: ModelNow
    flags: Mapping[str, float]
    warnings: Mapping[str, float]
    finished: Mapping[str, float]
    alarmed: float
    lost: float
    errors: float
    waiting: float
    lag_s: float | None
    history: Sequence[float]
    trouble: str = ""


Live = Callable[[], Now]
"""Reads the server, at most once a second. Raises :class:`NotReachedError`."""


def view(live: Live | None) -> dict[str, Any]:
    """The values of the template.

    Args:
        live: reads the server; None: there is none.
    """
    try:
        if live is None:
            raise NotReachedError("there is no server to read: start `corevital ui` with --url")
        now = live()
    except NotReachedError as error:
        return {"now": None, "problem": str(error), "history": [], "most": 0, "high_share": HIGH}
    most = pictures.top_of(now.history, 1)
    history = pictures.lines(now.history, most)
    return {"now": now, "problem": now.trouble, "history": history, "most": most, "high_share": HIGH}
