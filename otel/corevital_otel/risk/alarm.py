"""Alarms while an answer is being generated, with a known false-alarm rate.

The watched signal is a running maximum. It never falls, so it crosses a threshold within a run exactly if its last
value, an ordinary feature, is above the threshold. Split conformal prediction gives the threshold: of n good runs, the
ceil((n + 1) (1 - rate))-th smallest maximum. Another good run of the same kind then raises a false alarm with at most
that rate (Vovk, Gammerman, Shafer 2005; Angelopoulos and Bates, arXiv:2107.07511). The guarantee does not hold for
traffic of another kind, so a shift of traffic is a flag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from corevital_otel.measure import features
from corevital_otel.report import Features, Series

SIGNALS: Final = {"entropy_group_max": 1, "entropy_max": 1, "surprisal_max": 1, "margin_min": -1, "confidence_min": -1}
"""Features that are extremes over a run, and the sign that makes each a maximum where high is bad."""

RATE: Final = 0.05
"""Default of ``COREVITAL_ALARM_RATE``."""
_BOUNDS: Final = {"margin_min": 0.0, "confidence_min": 0.0}
"""Where a signal's maximum can rise no further. bfloat16 logits tie, so the lowest margin often gets there."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """The watched signal, and its maxima over good runs.

    Attributes:
        signal: one of :data:`SIGNALS`.
        good: the maxima, times the sign in :data:`SIGNALS`, sorted.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    signal: str
    good: tuple[float, ...]

    def threshold(self, rate: float) -> float:
        """The value above which the alarm is raised; infinity with too few good runs for this rate."""
        rank = math.ceil((len(self.good) + 1) * (1.0 - rate))
        return self.good[rank - 1] if rank <= len(self.good) else math.inf

    def can_fire(self, rate: float) -> bool:
        """Whether any run can be above the threshold."""
        return self.threshold(rate) < _BOUNDS.get(self.signal, math.inf)

    def is_stuck(self, rate: float) -> bool:
        """Whether no run can be above the threshold however many good runs there are: it is at the signal's bound."""
        return math.isfinite(self.threshold(rate)) and not self.can_fire(rate)

    def value(self, found: Features) -> float | None:
        """A run's maximum; None if unknown."""
        value = getattr(found, self.signal)
        return None if value is None else float(SIGNALS[self.signal] * value)


def running_maximum(series: Series, signal: str) -> npt.NDArray[Any]:
    """The watched maximum after each token of a series, ``[T]`` float64, as a server sees it.

    -inf before the first value: within the first group for ``entropy_group_max``.

    Raises:
        ValueError: a stored series does not have this signal.
    """
    values = {"entropy_max": series.entropy, "surprisal_max": series.surprisal, "margin_min": -series.margin}
    if signal == "entropy_group_max":
        values[signal] = features.group_means(series.entropy)
    if signal not in values:
        raise ValueError(f"no {signal} in a stored series: use one of {', '.join(values)}")
    return np.fmax.accumulate(np.where(np.isnan(values[signal]), -np.inf, values[signal]).astype(np.float64))
