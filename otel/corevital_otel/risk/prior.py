"""The basis ``prior``: the shipped default, not calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from corevital.frames.lifecycle import Admitted
from corevital_otel.report import Features, Health, Risk
from corevital_otel.risk.levels import level


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal of risk and its reference curve, 1 / (1 + (middle / value) ** steepness).

    Attributes:
        value: reads the signal from the features; None if unknown.
        middle: value at which the curve is one half.
        steepness: how fast the curve rises there; negative if small values are risky.
        text: of the factor, a format of the value.
    """

    value: Callable[[Features], float | None]
    middle: float
    steepness: float
    text: str

    def curve(self, value: float) -> float:
        """The signal on a scale from 0 (harmless) to 1."""
        if value <= 0.0:
            return 0.0 if self.steepness > 0.0 else 1.0
        return 1.0 / (1.0 + math.pow(self.middle / value, self.steepness))


PRIOR_SIGNALS: Final = (
    Signal(lambda f: f.entropy_sum, 220.0, 1.5, "total entropy {:.0f} bits"),
    Signal(lambda f: f.surprisal_sum, 110.0, 1.5, "total surprisal {:.0f} bits"),
    Signal(lambda f: f.entropy_max, 8.0, 4.0, "entropy peak {:.1f} bits"),
    Signal(lambda f: f.entropy_std, 1.1, 4.0, "entropy spread {:.1f} bits"),
    Signal(lambda f: f.confidence_min, 7.0, -4.0, "least confident stretch {:.1f} nats"),
    Signal(lambda f: f.margin_min, 0.003, -0.5, "closest margin {:.2g}"),
)
"""The prior's signals. The first four curves were set on 251 answers of an 8B model to grade-school mathematics (the
table in CoreVital's commit 818c711, Apache-2.0, without truncated answers), so that at least three quarters of the
answers stay below one half in each signal. Medians there: sums 157 and 66 bits, peak 6.6, spread 0.9. The table has no
confidences and no minimal margins: those two curves are set by reasoning, not by measurement."""


class PriorRisk:
    """The shipped default: the plain mean of six signals' reference curves. Not calibrated.

    The score ranks outputs of one model on one task somewhat better than chance: AUROC 0.65 on the table that its
    curves were set on, with the four signals of that table. It is not a probability, and it grows with the length of an
    output, as total entropy and surprisal do. The signals are those with the best evidence: totals rather than means,
    extremes, and the spread. Prefer ``baseline`` or ``calibrated``, which know the model's own traffic.

    Args:
        threshold: score from which a risk is ``high``.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def score(self, features: Features) -> float | None:
        """See :meth:`corevital_otel.risk.levels.Scorer.score`."""
        return _mean(_points(features))

    def assess(self, features: Features, health: Health, admitted: Admitted) -> Risk:
        """See :meth:`RiskModel.assess`. Factors are the signals above one half, strongest first."""
        points = _points(features)
        raised = sorted((point for point in points if point[0] > 0.5), key=lambda point: -point[0])
        score = _mean(points)
        factors = tuple(signal.text.format(value) for _, signal, value in raised)
        return Risk(score=score, level=level(score, self._threshold), factors=factors)


def _points(features: Features) -> list[tuple[float, Signal, float]]:
    if features.tokens == 0 or features.entropy_mean is None:
        return []
    values = [(signal, signal.value(features)) for signal in PRIOR_SIGNALS]
    return [(signal.curve(value), signal, value) for signal, value in values if value is not None]


def _mean(points: list[tuple[float, Signal, float]]) -> float | None:
    return sum(point for point, _, _ in points) / len(points) if points else None
