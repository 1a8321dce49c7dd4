"""Chooses the signal of a profile's alarm, and refuses one that cannot fire or always does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from corevital_otel.risk import alarm as alarms
from corevital_otel.risk.table import FloatArray, Runs

_KEPT_MAXIMA: Final = 1000
_COMPARED: Final = (0.02, 0.05, 0.1, 0.2)
"""Rates over which the share of bad runs found is averaged: at one rate alone, few labels decide by chance."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Trial:
    """What an alarm on a signal would have done on the labelled runs.

    Attributes:
        alarm: the alarm.
        rate: false-alarm rate asked for: the default, or more where there are too few good runs for that.
        good, bad: runs that would have alarmed, and how many there are.
        found: mean share of bad runs found over several rates.
        refused: why the alarm is useless; "": it is useful.
    """

    alarm: alarms.Alarm
    rate: float
    good: tuple[int, int]
    bad: tuple[int, int]
    found: float
    refused: str = ""


def trials(runs: Runs, bad: Bools, seed: int = 0) -> list[Trial]:
    """A trial of each signal in the table, the best first; refused ones last."""
    found = [
        _trial(name, sign * runs.columns[name], bad, seed)
        for name, sign in alarms.SIGNALS.items()
        if name in runs.columns and np.isfinite(runs.columns[name][~bad]).any()
    ]
    return sorted(found, key=lambda one: (bool(one.refused), -one.found))


def choose(runs: Runs, bad: Bools, seed: int = 0) -> alarms.Alarm | None:
    """The best alarm; None where every one is refused."""
    return next((one.alarm for one in trials(runs, bad, seed) if not one.refused), None)


def _trial(name: str, values: FloatArray, bad: Bools, seed: int) -> Trial:
    good = values[~bad & np.isfinite(values)]
    if len(good) > _KEPT_MAXIMA:
        good = np.random.default_rng(seed).choice(good, _KEPT_MAXIMA, replace=False)
    alarm = alarms.Alarm(name, tuple(np.sort(good).tolist()))
    rate = max(alarms.RATE, 1.0 / (len(good) + 1))
    over = values > alarm.threshold(rate)
    counts = [(int(over[kind].sum()), int(kind.sum())) for kind in (~bad, bad)]
    found = np.mean([(values[bad] > alarm.threshold(max(one, rate))).mean() for one in _COMPARED])
    refused = ""
    if not alarm.can_fire(rate):
        refused = "it cannot fire: good runs are at its bound"
    elif not counts[1][0]:
        refused = "it would have found no bad run"
    elif counts[0][0] > max(2 * rate * counts[0][1], 1):
        refused = "it fires on good runs at more than the rate"
    return Trial(alarm, rate, counts[0], counts[1], float(found), refused)


def auroc(scores: FloatArray, bad: Bools) -> float:
    """Share of pairs of a bad and a good run in the right order."""
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    return float(roc_auc_score(bad, scores))
