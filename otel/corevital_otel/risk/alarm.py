"""Alarms while an answer is still being made, at a false-alarm rate that is known beforehand.

What is watched is a running maximum: it only ever rises, so it crosses a threshold within a run exactly where its last
value, an ordinary feature, lies above it. Split conformal prediction gives the threshold: of n runs known to be good,
the ceil((n + 1) (1 - rate))-th smallest maximum. A further good run of the same kind then raises a false alarm with at
most that rate (Vovk, Gammerman, Shafer 2005; Angelopoulos and Bates, arXiv:2107.07511). Traffic of another kind breaks
the promise, which is why a shift of traffic is a flag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital_otel import features
from corevital_otel.report import Features, Series

SIGNALS: Final = {"entropy_group_max": 1, "entropy_max": 1, "surprisal_max": 1, "margin_min": -1, "confidence_min": -1}
"""Features that are extremes over a run, and the sign that makes each a maximum whose high values are the bad ones."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is watched, and what good runs reach.

    Attributes:
        signal: one of :data:`SIGNALS`.
        good: its maxima over good runs, with their sign turned where it is -1, sorted.
    """

    signal: str
    good: tuple[float, ...]

    def threshold(self, rate: float) -> float:
        """Beyond this it alarms; infinity where so few good runs do not allow so low a rate."""
        rank = math.ceil((len(self.good) + 1) * (1.0 - rate))
        return self.good[rank - 1] if rank <= len(self.good) else math.inf

    def value(self, found: Features) -> float | None:
        """The maximum that a run reached."""
        value = getattr(found, self.signal)
        return None if value is None else float(SIGNALS[self.signal] * value)


def running_maximum(series: Series, signal: str) -> npt.NDArray[Any]:
    """The watched maximum after each token of a series, ``[T]``: what a server has seen by then.

    -inf before there is a value, which for ``entropy_group_max`` is in the first group.

    Raises:
        ValueError: a stored series cannot give this signal.
    """
    values = {"entropy_max": series.entropy, "surprisal_max": series.surprisal, "margin_min": -series.margin}
    if signal == "entropy_group_max":
        values[signal] = features.group_means(series.entropy)
    if signal not in values:
        raise ValueError(f"no {signal} in a stored series: use one of {', '.join(values)}")
    return np.fmax.accumulate(np.where(np.isnan(values[signal]), -np.inf, values[signal]).astype(np.float64))
