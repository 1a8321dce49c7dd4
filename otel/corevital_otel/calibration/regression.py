"""Logistic regression with an L2 penalty and known directions. Needs SciPy.

The penalised loss is convex and the directions are bounds of single weights, so L-BFGS-B finds its only minimum (Byrd,
Lu, Nocedal and Zhu 1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital_otel.risk.table import FloatArray

Bools = npt.NDArray[np.bool_]

_FOLDS: Final = 5
_ITERATIONS: Final = 2000


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted model: log-odds are ``design @ weights + intercept``."""

    weights: FloatArray
    intercept: float

    def __call__(self, design: FloatArray) -> FloatArray:
        """Log-odds ``[n]`` of runs ``[n, d]``."""
        found: FloatArray = design @ self.weights + self.intercept
        return found


def solve(design: FloatArray, bad: Bools, strength: float, directions: npt.NDArray[np.int_]) -> Line:
    """Fit to runs.

    Args:
        design: ``[n, d]``.
        bad: ``[n]``.
        strength: inverse strength of the penalty: the loss is ``strength`` times the summed log loss, plus half the
            squared weights.
        directions: ``[d]``, the sign that a weight may have; 0: any.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    sign = np.where(bad, 1.0, -1.0)

    def loss(at: FloatArray) -> tuple[float, FloatArray]:
        wrong = -sign * (design @ at[:-1] + at[-1])
        slope = -sign / (1.0 + np.exp(-np.clip(wrong, -500.0, 500.0))) * strength
        value = np.logaddexp(0.0, wrong).sum() * strength + at[:-1] @ at[:-1] / 2.0
        return float(value), np.append(design.T @ slope + at[:-1], slope.sum())

    bounds: list[tuple[float | None, float | None]] = [
        (0.0, None) if one > 0 else (None, 0.0) if one < 0 else (None, None) for one in directions.tolist()
    ]
    start = np.zeros(design.shape[1] + 1)
    start[-1] = np.log(bad.sum() / (~bad).sum())
    found: Any = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[*bounds, (None, None)], options={"maxiter": _ITERATIONS}
    )
    return Line(found.x[:-1], float(found.x[-1]))


def folds(bad: Bools, seed: int) -> npt.NDArray[np.int_]:
    """The fold of each run, ``[n]``: bad and good ones are spread evenly."""
    rng = np.random.default_rng(seed)
    found = np.empty(len(bad), np.int_)
    for kind in (bad, ~bad):
        found[rng.permutation(np.flatnonzero(kind))] = np.arange(kind.sum()) % _FOLDS
    return found


def unseen(
    design: FloatArray, bad: Bools, strength: float, directions: npt.NDArray[np.int_], fold: npt.NDArray[np.int_]
) -> FloatArray:
    """Log-odds of each run by the model of the other folds, ``[n]``."""
    found = np.empty(len(bad))
    for one in np.unique(fold):
        kept = fold != one
        found[~kept] = solve(design[kept], bad[kept], strength, directions)(design[~kept])
    return found


def losses(logits: FloatArray, bad: Bools) -> FloatArray:
    """Log loss of each run, ``[n]``, nats."""
    found: FloatArray = np.logaddexp(0.0, np.where(bad, -logits, logits))
    return found
