"""Fits a profile on labelled runs. Needs scikit-learn and SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from corevital_otel.calibration import alarm_choice, regression
from corevital_otel.calibration.regression import Bools
from corevital_otel.risk.calibrated import Curve, Profile, Term
from corevital_otel.risk.directions import DIRECTIONS
from corevital_otel.risk.table import FloatArray, Runs

LEAST_RUNS: Final = 50
LEAST_OF_EACH: Final = 10
"""The least labelled runs of a profile, and of bad and good ones among them."""

_STRENGTHS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Inverse strengths of the L2 penalty to try, the strongest first."""
_TIED: Final = 0.2
"""Share of good runs tied at the risky end from which a feature is left out: the lowest margin of bfloat16 logits."""
_UNPENALISED: Final = 1e6
_KNOTS: Final = 21
_ISOTONIC_FROM: Final = 2000
"""Runs from which an isotonic curve is better than a smooth one; with fewer it overfits (Niculescu-Mizil and Caruana
2005 and scikit-learn's guide: below about a thousand)."""


class FitError(ValueError):
    """These runs do not make a profile. The text is one line that names the cause and the fix."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One way to fit, and how well it does on runs that it has not seen."""

    strength: float
    terms: list[Term]
    design: FloatArray
    logits: FloatArray
    losses: FloatArray


def fit(
    runs: Runs,
    bad: Bools,
    *,
    label: str = "",
    seed: int = 0,
    step: Callable[[str], None] = lambda _: None,
    unseen: Callable[[FloatArray], None] = lambda _: None,
    engines: tuple[str, ...] = (),
    stages: tuple[str, ...] = (),
) -> Profile:
    """Fit a profile on labelled runs.

    The model is an L2-regularised logistic regression in which no feature with a known direction
    (:mod:`corevital_otel.risk.directions`) has a weight against it. Of the transformations (signed logarithm, or
    normal deviate of the quantile) and penalties, cross-validation chooses the strongest penalty that is not worse than
    the best one by more than a standard error (Breiman et al. 1984): pooled loss also rewards telling the kinds of
    request apart, which weaker penalties do. The calibration curve is fitted on the cross-validated log-odds, so each
    run is new to it.

    Args:
        runs: the features.
        bad: ``[n]``, whether each run was bad.
        label: the label's name, for the profile.
        seed: of the folds; the same seed gives the same profile.
        step: called with a description of each step.
        unseen: called with each run's cross-validated score ``[n]``, 0 to 1: of a model that has not seen the run.
        engines, stages: where the runs come from, for the profile.

    Raises:
        FitError: too few runs, runs of one kind only, or no usable feature.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    bad = np.asarray(bad, bool)
    counts = {"bad": int(bad.sum()), "good": int((~bad).sum())}
    for kind, other in (("bad", "good"), ("good", "bad")):
        if not counts[kind]:
            raise FitError(f"all {len(bad)} labelled runs are {other}: a profile needs some {kind} ones")
    if len(bad) < LEAST_RUNS or min(counts.values()) < LEAST_OF_EACH:
        raise FitError(
            f"{len(bad)} labelled runs, {counts['bad']} of them bad, are too few: label at least {LEAST_RUNS}, "
            f"{LEAST_OF_EACH} of each kind"
        )
    names = [name for name, column in runs.columns.items() if _varies(column) and not _saturates(name, column[~bad])]
    if not names:
        raise FitError(
            "every feature is constant, saturated or mostly unknown: add columns such as entropy_mean, entropy_max, "
            "surprisal_sum"
        )
    columns = {name: runs.columns[name] for name in names}
    directions = np.array([DIRECTIONS.get(name, 0) for name in names])
    with threadpool_limits(1):  # the matrices are small: threads only wait for each other
        chosen = _choose(_candidates(columns, bad, directions, seed, step), bad)
        unseen(1.0 / (1.0 + np.exp(-chosen.logits)))
        step("fitting")
        line = regression.solve(chosen.design, bad, chosen.strength, directions)
    weights = zip(chosen.terms, line.weights.tolist(), strict=True)
    beta, isotonic = _calibration(chosen.logits, bad)
    return Profile(
        terms=tuple(replace(term, coefficient=weight) for term, weight in weights),
        intercept=line.intercept,
        beta=beta,
        isotonic=isotonic,
        alarm=alarm_choice.choose(runs, bad, seed),
        label=label,
        runs=len(bad),
        bad=counts["bad"],
        auroc=alarm_choice.auroc(chosen.logits, bad),
        engines=engines,
        stages=stages,
    )


def _candidates(
    columns: dict[str, FloatArray],
    bad: Bools,
    directions: npt.NDArray[np.int_],
    seed: int,
    step: Callable[[str], None],
) -> list[_Candidate]:
    fold = regression.folds(bad, seed)
    found = []
    for make in (_logarithmic, _quantiled):
        terms = [make(name, column) for name, column in columns.items()]
        design = np.column_stack([_deviations(term, columns[term.name]) for term in terms])
        for strength in _STRENGTHS:
            step(f"cross-validating {'quantiles' if make is _quantiled else 'logarithms'}, penalty {1 / strength:g}")
            logits = regression.unseen(design, bad, strength, directions, fold)
            found.append(_Candidate(strength, terms, design, logits, regression.losses(logits, bad)))
    return found


def _choose(candidates: list[_Candidate], bad: Bools) -> _Candidate:
    """The strongest penalty within a standard error of the lowest loss; among equals the lowest loss."""
    best = min(candidates, key=lambda one: one.losses.mean())

    def near(one: _Candidate) -> bool:
        more = one.losses - best.losses
        return bool(more.mean() <= more.std() / math.sqrt(len(bad)))

    return min(filter(near, candidates), key=lambda one: (one.strength, one.losses.mean()))


def _varies(column: FloatArray) -> bool:
    known = column[np.isfinite(column)]
    return len(known) >= len(column) / 2 and bool(np.ptp(known) > 0)


def _saturates(name: str, good: FloatArray) -> bool:
    """Whether many good runs are tied at the risky end: it cannot tell bad ones from them."""
    known = DIRECTIONS.get(name, 0) * good[np.isfinite(good)]
    return name in DIRECTIONS and len(known) > 0 and bool((known == known.max()).mean() >= _TIED)


def _logarithmic(name: str, column: FloatArray) -> Term:
    known = column[np.isfinite(column)]
    logs = np.copysign(np.log1p(np.abs(known)), known)
    return Term(name, float(np.median(known)), 0.0, float(np.median(logs)), float(logs.std()) or 1.0, None)


def _quantiled(name: str, column: FloatArray) -> Term:
    known = np.sort(column[np.isfinite(column)])
    levels = (np.arange(_KNOTS) + 0.5) / _KNOTS
    values, place = np.unique(np.quantile(known, levels), return_inverse=True)
    deviates = np.array([NormalDist().inv_cdf(level) for level in levels])
    mean = np.bincount(place, deviates) / np.bincount(place)
    typical = float(np.median(known))
    mean -= np.interp(typical, values, mean)  # a typical value raises nothing, so it is never a factor
    curve = Curve(tuple(values.tolist()), tuple(mean.tolist()))
    return Term(name, typical, 0.0, 0.0, 1.0, curve)


def _deviations(term: Term, column: FloatArray) -> FloatArray:
    return np.array([term.deviation(term.typical if math.isnan(value) else value) for value in column.tolist()])


def _calibration(logits: FloatArray, bad: Bools) -> tuple[tuple[float, float, float], Curve | None]:
    """The profile's ``beta`` and ``isotonic``."""
    if len(bad) >= _ISOTONIC_FROM:
        from sklearn.isotonic import IsotonicRegression  # type: ignore[import-untyped]

        curve = IsotonicRegression(y_min=0.5 / len(bad), y_max=1 - 0.5 / len(bad)).fit(logits, bad)
        x, first = np.unique(curve.X_thresholds_, return_index=True)
        return (1.0, 1.0, 0.0), Curve(tuple(x.tolist()), tuple(curve.y_thresholds_[first].tolist()))
    return _beta(logits, bad), None


def _beta(logits: FloatArray, bad: Bools) -> tuple[float, float, float]:
    """Beta calibration: a logistic regression on ln p and -ln(1 - p), whose slopes do not fall.

    Both are zero, and every score the base rate, where the features are unrelated to the label.
    """
    sides = np.column_stack([-np.logaddexp(0.0, -logits), np.logaddexp(0.0, logits)])
    line = regression.solve(sides, bad, _UNPENALISED, np.ones(2, np.int_))
    return float(line.weights[0]), float(line.weights[1]), line.intercept
