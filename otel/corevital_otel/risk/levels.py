"""The levels of a score, and the protocol of a basis on a table of runs."""

from __future__ import annotations

from typing import Final, Protocol

from corevital_otel.report import Features, RiskLevel

MEDIUM: Final = 0.4
"""Score from which a risk is ``medium``. On the prior's reference table three in ten runs reach it."""


class Scorer(Protocol):
    """Scores features alone: a basis on a table of runs."""

    def score(self, features: Features) -> float | None:
        """0 to 1; None without a score."""


def level(score: float | None, threshold: float) -> RiskLevel:
    """Level of a score: ``high`` from ``threshold``, ``medium`` from :data:`MEDIUM`; None is ``unknown``."""
    if score is None:
        return "unknown"
    if score >= threshold:
        return "high"
    return "medium" if score >= MEDIUM else "low"
