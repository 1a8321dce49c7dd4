"""The peer's documented risk formula, as far as it uses logits: one row of the benchmark, not part of the product.

CoreVital (github.com/Joe-b-20/CoreVital), docs/risk-calibration.md, "Composite risk scoring (Phase 2)": a floor from
flags, plus addends, at most 1. The thresholds of the compound signals are those of its compound_signals.py at 981b165.
Left out, because they need attention maps or hidden states: mid-layer anomaly, attention collapse, context loss,
attention bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from corevital_otel.report import Series

Values = npt.NDArray[Any]


def risk(series: Series, flags: list[str]) -> float:
    """The peer's score of one run, from its per-token values and the flags it raised."""
    if "nan_detected" in flags or "inf_detected" in flags:
        return 1.0
    floor = 0.9 if "repetition_loop_detected" in flags else 0.0
    return float(min(1.0, floor + sum(_addends(series)) + sum(_compound(series))))


def _addends(series: Series) -> Iterator[float]:
    entropy = series.entropy
    elevated = min(1.0, entropy.mean() / 8.0) * 0.3
    yield elevated if elevated > 0.05 else 0.0
    third = len(entropy) // 3
    if len(entropy) >= 6:
        first, last = entropy[:third].mean(), entropy[-third:].mean()
        if last > first * 1.3:
            yield min(0.2, (last - first) / first * 0.1) if first > 0 else 0.2
    margin = max(0.0, 1.0 - series.margin.mean() * 5.0) * 0.2
    yield margin if margin > 0.05 else 0.0
    mass = max(0.0, 1.0 - series.topk_mass.mean()) * 0.15
    yield mass if mass > 0.03 else 0.0
    surprisal = min(0.1, series.surprisal.mean() / 10.0)
    yield surprisal if surprisal > 0.02 else 0.0


def _compound(series: Series) -> Iterator[float]:
    entropy, margin, surprisal, mass = (
        float(values[-5:].mean()) for values in (series.entropy, series.margin, series.surprisal, series.topk_mass)
    )
    if entropy > 4.0 and margin > 0.3:
        yield 0.5  # confident confusion
    slopes = _slope(series.entropy), _slope(series.margin), _slope(series.surprisal)
    if len(series) >= 10 and slopes[0] > 0.05 and slopes[1] < -0.01 and slopes[2] > 0.05:
        yield 0.5  # degenerating generation
    if entropy < 2.0 and surprisal < 1.0 and mass > 0.95:
        yield 0.3  # confident repetition risk


def _slope(values: Values) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0
