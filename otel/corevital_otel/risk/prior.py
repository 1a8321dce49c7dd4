"""The basis ``prior``: the shipped default, not calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from corevital.frames.lifecycle import Admitted
from corevital_otel.report import Features, Health, Risk
from corevital_otel.risk.levels import level

LENGTH: Final = 0.7
"""Totals are divided by the tokens to this power. With 0 they grow with the length and call every long answer risky.
With 1 they are means, which rank answers of one task worse where a longer answer is more often wrong."""
LONG: Final = 512
"""Tokens from which a longer answer of the same kind is not riskier."""
_LEAST: Final = 1e-3
"""The least share of its middle that a signal counts as: a sure token has a surprisal of 0."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal of risk, with log-odds of ``steepness * ln(value / middle)``.

    Attributes:
        value: reads the signal from the features; None if unknown.
        middle: value at which the log-odds are 0.
        steepness: log-odds for each e-fold of the value.
        text: of the factor, a format of the features.
    """

    value: Callable[[Features], float | None]
    middle: float
    steepness: float
    text: Callable[[Features], str]

    def log_odds(self, value: float) -> float:
        """The signal in log-odds, 0 at its middle."""
        return self.steepness * math.log(max(value / self.middle, _LEAST))


def _per_length(mean: float | None, total: float | None) -> float | None:
    """The total divided by the measured tokens to the power of :data:`LENGTH`; those are the total by the mean."""
    if mean is None or total is None:
        return None
    mean, total = max(mean, 0.0), max(total, 0.0)  # a broken worker's may be anything
    return float(mean**LENGTH * min(total, LONG * mean) ** (1.0 - LENGTH))


PRIOR_SIGNALS: Final = (
    Signal(
        lambda f: _per_length(f.entropy_mean, f.entropy_sum),
        5.5,
        0.9,
        lambda f: f"total entropy {f.entropy_sum:.0f} bits in {f.tokens} tokens",
    ),
    Signal(
        lambda f: _per_length(f.surprisal_mean, f.surprisal_sum),
        3.4,
        0.9,
        lambda f: f"total surprisal {f.surprisal_sum:.0f} bits in {f.tokens} tokens",
    ),
    Signal(lambda f: f.entropy_max, 8.1, 0.9, lambda f: f"entropy peak {f.entropy_max:.1f} bits"),
)
"""The prior's signals. Their middles and steepness were set so that one in five of 251 answers of an 8B model
to grade-school mathematics (the table in CoreVital's commit 818c711, Apache-2.0, without truncated answers) are medium,
and that of the long answers of a 135M model at most one in ten is high at a temperature of 0.7 (``make bench-real``).
No statistic with a bound is among them: the lowest margin is 0 in most long answers of a bfloat16 model."""


class PriorRisk:
    """The shipped default: the mean of three signals' log-odds, as a score. Not calibrated, and not a probability.

    The score ranks outputs of one model on one task. Prefer ``baseline`` or ``calibrated``, which know the model's own
    traffic.

    Args:
        threshold: score from which a risk is ``high``.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def score(self, features: Features) -> float | None:
        """See :meth:`corevital_otel.risk.levels.Scorer.score`."""
        return score(features)

    def assess(self, features: Features, health: Health, admitted: Admitted) -> Risk:
        """See :meth:`RiskModel.assess`. Factors are the signals above their middle, strongest first."""
        points = _points(features)
        found = _mean(points)
        raised = sorted((point for point in points if point[0] > 0.0), key=lambda point: -point[0])
        factors = tuple(signal.text(features) for _, signal in raised)
        return Risk(score=found, level=level(found, self._threshold), factors=factors)


def score(features: Features) -> float | None:
    """The prior's score; None without features."""
    return _mean(_points(features))


def _points(features: Features) -> list[tuple[float, Signal]]:
    if features.tokens == 0 or features.entropy_mean is None:
        return []
    values = [(signal, signal.value(features)) for signal in PRIOR_SIGNALS]
    return [(signal.log_odds(value), signal) for signal, value in values if value is not None]


def _mean(points: list[tuple[float, Signal]]) -> float | None:
    if not points:
        return None
    return 1.0 / (1.0 + math.exp(-sum(point for point, _ in points) / len(points)))
