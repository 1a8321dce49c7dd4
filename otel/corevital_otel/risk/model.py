"""What a basis of risk has to do."""

from __future__ import annotations

from typing import Final, Protocol

from corevital.frames.lifecycle import Admitted
from corevital_otel.report import Features, Health, Risk, RiskLevel

MEDIUM: Final = 0.4
"""From here on a risk is at least ``medium``. On the prior's reference table three in ten runs are."""


class RiskModel(Protocol):
    """Assesses finished sequences."""

    def assess(self, features: Features, health: Health, admitted: Admitted) -> Risk:
        """Risk of a sequence. ``score`` None and level ``unknown`` where nothing can be said."""


class Scorer(Protocol):
    """What gives a number alone: a basis on a table of runs."""

    def score(self, features: Features) -> float | None:
        """0 to 1, or None where nothing can be said."""


def level(score: float | None, threshold: float) -> RiskLevel:
    """Level of a score: ``high`` from ``threshold`` on, ``medium`` from :data:`MEDIUM` on, None is ``unknown``."""
    if score is None:
        return "unknown"
    if score >= threshold:
        return "high"
    return "medium" if score >= MEDIUM else "low"
