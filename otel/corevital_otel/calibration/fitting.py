"""Fits a profile on labelled runs. Needs scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital_otel.risk import alarm as alarms
from corevital_otel.risk.calibrated import Curve, Profile, Term
from corevital_otel.risk.table import FloatArray, Runs

LEAST_RUNS: Final = 50
LEAST_OF_EACH: Final = 10
"""The least labelled runs of a profile, and of bad and good ones among them. 50 gave AUROC 0.84, 400 gave 0.92."""

_FOLDS: Final = 5
_STRENGTHS: Final = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse strengths of the L2 penalty to try."""
_KNOTS: Final = 21
_ISOTONIC_FROM: Final = 2000
"""Runs from which an isotonic curve is better than a smooth one; with fewer it overfits (Niculescu-Mizil and Caruana
2005 and scikit-learn's guide: below about a thousand)."""
_KEPT_MAXIMA: Final = 1000

Bools = npt.NDArray[np.bool_]


class FitError(ValueError):
    """These runs do not make a profile. The text is one line that names the cause and the fix."""


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

    The model is an L2-regularised logistic regression. The transformation (signed logarithm, or normal deviate of the
    quantile) and the penalty's strength have the lowest cross-validated log loss. The calibration curve is fitted on
    the cross-validated log-odds, so each run is new to it.

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
    names = [name for name, column in runs.columns.items() if _varies(column)]
    if not names:
        raise FitError(
            "every feature is constant or mostly unknown: add columns such as entropy_mean, entropy_max, surprisal_sum"
        )
    columns = {name: runs.columns[name] for name in names}
    candidates = []
    for make in (_logarithmic, _quantiled):
        terms = [make(name, column) for name, column in columns.items()]
        design = np.column_stack([_deviations(term, columns[term.name]) for term in terms])
        for strength in _STRENGTHS:
            step(f"cross-validating {'quantiles' if make is _quantiled else 'logarithms'}, penalty {1 / strength:g}")
            logits = _out_of_fold(design, bad, strength, seed)
            candidates.append((_log_loss(logits, bad), strength, terms, design, logits))
    _, strength, terms, design, logits = min(candidates, key=lambda one: one[0])
    unseen(1.0 / (1.0 + np.exp(-logits)))
    step("fitting")
    model = _regression(strength).fit(design, bad)
    fitted = tuple(replace(term, coefficient=float(weight)) for term, weight in zip(terms, model.coef_[0], strict=True))
    beta, isotonic = _calibration(logits, bad)
    return Profile(
        terms=fitted,
        intercept=float(model.intercept_[0]),
        beta=beta,
        isotonic=isotonic,
        alarm=_alarm(runs, bad, seed),
        label=label,
        runs=len(bad),
        bad=counts["bad"],
        auroc=_auroc(logits, bad),
        engines=engines,
        stages=stages,
    )


def _varies(column: FloatArray) -> bool:
    known = column[np.isfinite(column)]
    return len(known) >= len(column) / 2 and bool(np.ptp(known) > 0)


def _logarithmic(name: str, column: FloatArray) -> Term:
    known = column[np.isfinite(column)]
    logs = np.copysign(np.log1p(np.abs(known)), known)
    return Term(name, float(np.median(known)), 0.0, float(logs.mean()), float(logs.std()) or 1.0, None)


def _quantiled(name: str, column: FloatArray) -> Term:
    known = np.sort(column[np.isfinite(column)])
    levels = (np.arange(_KNOTS) + 0.5) / _KNOTS
    values, place = np.unique(np.quantile(known, levels), return_inverse=True)
    deviates = np.array([NormalDist().inv_cdf(level) for level in levels])
    mean = np.bincount(place, deviates) / np.bincount(place)
    curve = Curve(tuple(values.tolist()), tuple(mean.tolist()))
    return Term(name, float(np.median(known)), 0.0, 0.0, 1.0, curve)


def _deviations(term: Term, column: FloatArray) -> FloatArray:
    return np.array([term.deviation(term.typical if math.isnan(value) else value) for value in column.tolist()])


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    return LogisticRegression(C=strength, max_iter=5000)


def _out_of_fold(design: FloatArray, bad: Bools, strength: float, seed: int) -> FloatArray:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict  # type: ignore[import-untyped]

    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    found: FloatArray = cross_val_predict(_regression(strength), design, bad, cv=folds, method="decision_function")
    return found


def _log_loss(logits: FloatArray, bad: Bools) -> float:
    return float(np.logaddexp(0.0, np.where(bad, -logits, logits)).mean())


def _auroc(scores: FloatArray, bad: Bools) -> float:
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    return float(roc_auc_score(bad, scores))


def _calibration(logits: FloatArray, bad: Bools) -> tuple[tuple[float, float, float], Curve | None]:
    """The profile's ``beta`` and ``isotonic``."""
    if len(bad) >= _ISOTONIC_FROM:
        from sklearn.isotonic import IsotonicRegression  # type: ignore[import-untyped]

        curve = IsotonicRegression(y_min=0.5 / len(bad), y_max=1 - 0.5 / len(bad)).fit(logits, bad)
        x, first = np.unique(curve.X_thresholds_, return_index=True)
        return (1.0, 1.0, 0.0), Curve(tuple(x.tolist()), tuple(curve.y_thresholds_[first].tolist()))
    return _beta(logits, bad), None


def _beta(logits: FloatArray, bad: Bools) -> tuple[float, float, float]:
    """Beta calibration: a logistic regression on ln p and -ln(1 - p). A side with a falling slope is left out."""
    sides = np.column_stack([-np.logaddexp(0.0, -logits), np.logaddexp(0.0, logits)])
    used = [0, 1]
    while used:
        found = _regression(1e6).fit(sides[:, used], bad)
        if (found.coef_[0] > 0).all():
            slopes = dict(zip(used, found.coef_[0].tolist(), strict=True))
            return slopes.get(0, 0.0), slopes.get(1, 0.0), float(found.intercept_[0])
        used.pop(int(found.coef_[0].argmin()))
    rate = bad.mean()  # the features are unrelated to the label: use the base rate
    return 0.0, 0.0, float(np.log(rate / (1 - rate)))


def _alarm(runs: Runs, bad: Bools, seed: int) -> alarms.Alarm | None:
    """An alarm on the signal that separates bad runs from good ones best."""
    signals = {name: sign * runs.columns[name] for name, sign in alarms.SIGNALS.items() if name in runs.columns}
    rated = {
        name: _auroc(np.where(np.isnan(values), np.nanmin(values), values), bad)
        for name, values in signals.items()
        if _varies(values)
    }
    if not rated:
        return None
    best = max(rated, key=lambda name: rated[name])
    good = signals[best][~bad]
    good = good[np.isfinite(good)]
    if len(good) > _KEPT_MAXIMA:
        good = np.random.default_rng(seed).choice(good, _KEPT_MAXIMA, replace=False)
    return alarms.Alarm(best, tuple(np.sort(good).tolist()))
