"""The basis ``baseline``: where a request stands within this model's own traffic. Needs no labels.

Of each of six signals, the percentile against the last requests of the same model and temperature bucket; their mean;
and the percentile of that mean among those of the same requests. It says how unusual a request is, and so sets how
often there is an alert; it is no probability of being bad.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import Final

import numpy as np

from corevital_otel.report import Features
from corevital_otel.risk.table import FloatArray, Runs

SIGNALS: Final = {
    "entropy_sum": 1,
    "surprisal_sum": 1,
    "entropy_max": 1,
    "entropy_std": 1,
    "confidence_min": -1,
    "margin_min": -1,
}
"""The signals, and the sign that makes high values the risky ones."""


def signals(features: Features) -> tuple[float, ...]:
    """The signals of a sequence, high is risky; NaN where not known."""
    values = (getattr(features, name) for name in SIGNALS)
    return tuple(
        np.nan if value is None else sign * value for value, sign in zip(values, SIGNALS.values(), strict=True)
    )


class Reference:
    """A body of traffic that requests are compared with.

    Args:
        rows: ``[n, 6]`` :func:`signals`.
    """

    def __init__(self, rows: FloatArray) -> None:
        known = [np.sort(column[np.isfinite(column)]) for column in rows.T]
        shares = [
            (np.searchsorted(line, column, "left") + np.searchsorted(line, column, "right")) / (2 * max(len(line), 1))
            for line, column in zip(known, rows.T, strict=True)
        ]
        percentiles = np.where(np.isfinite(rows), np.column_stack(shares), np.nan)
        some = np.isfinite(percentiles).any(axis=1)
        self._means = np.sort(np.nanmean(percentiles[some], axis=1)).tolist()
        self._known: list[list[float]] = [line.tolist() for line in known]

    @classmethod
    def of(cls, runs: Runs) -> Reference:
        """The traffic that a table holds."""
        return cls(np.array([signals(features) for features in runs]))

    def percentiles(self, features: Features) -> dict[str, float]:
        """Where each known signal stands, 0 to 1: the share of requests that are less risky, ties counting half."""
        found = {}
        for name, value, line in zip(SIGNALS, signals(features), self._known, strict=True):
            if line and not math.isnan(value):
                found[name] = _share(line, value)
        return found

    def score(self, features: Features) -> float | None:
        """Where the mean of the percentiles stands among those of the traffic."""
        found = self.percentiles(features) if features.tokens else {}
        return _share(self._means, sum(found.values()) / len(found)) if found else None


def _share(line: list[float], value: float) -> float:
    return (bisect_left(line, value) + bisect_right(line, value)) / (2 * len(line))
