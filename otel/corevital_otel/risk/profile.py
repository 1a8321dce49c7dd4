"""The basis ``calibrated``: a profile fitted on labelled runs, and the score it gives. Needs NumPy at most.

The model is a logistic regression on transformed features, and a monotone curve on top that turns its output into a
probability. What a feature contributes is its coefficient times its deviation from the runs it was fitted on, in
log-odds: the factors are the largest of these, so they are what raised the score and nothing else.
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from corevital.frames.lifecycle import Admitted
from corevital_otel.attributes import FEATURES
from corevital_otel.report import Features, Health, Risk
from corevital_otel.risk import alarm as alarms
from corevital_otel.risk.model import level
from corevital_otel.risk.wording import describe, number

FORMAT: Final = "corevital-profile"
VERSION: Final = 1
_FACTORS: Final = 5
_NOTABLE: Final = 0.1
"""Log-odds from which on a contribution is a factor."""
_CAP: Final = 4.0
"""Deviations count as at most so many: far outside of what it was fitted on, a line is no knowledge."""


class ProfileError(ValueError):
    """A profile cannot be used. One line that names the cause and the mend."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A monotone piecewise-linear function, level outside of its points."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Its value there."""
        if value <= self.x[0]:
            return self.y[0]
        if value >= self.x[-1]:
            return self.y[-1]
        i = bisect_right(self.x, value)
        share = (value - self.x[i - 1]) / (self.x[i] - self.x[i - 1])
        return self.y[i - 1] + share * (self.y[i] - self.y[i - 1])


@dataclass(frozen=True, slots=True)
class Term:
    """One feature in the model.

    Attributes:
        name: of the feature.
        typical: its median over the runs it was fitted on; stands where the feature is not known.
        coefficient: log-odds for one deviation.
        center, scale: of the signed logarithm sign(x) log(1 + \\|x\\|); unused where there is a curve.
        quantiles: or else the curve from the feature to the normal deviate of its quantile.
    """

    name: str
    typical: float
    coefficient: float
    center: float = 0.0
    scale: float = 1.0
    quantiles: Curve | None = None

    def deviation(self, value: float) -> float:
        """How unusual a value is, in standard deviations of the transformed feature."""
        if self.quantiles is not None:
            return self.quantiles(value)
        deviation = (math.copysign(math.log1p(abs(value)), value) - self.center) / self.scale
        return min(max(deviation, -_CAP), _CAP)


@dataclass(frozen=True, slots=True)
class Profile:
    """A fitted model. See :func:`corevital_otel.risk.fitting.fit`.

    Attributes:
        terms: its features.
        intercept: log-odds of a run without deviation.
        beta: a, b and c of beta calibration (Kull, Silva Filho and Flach 2017): with p the probability before it, the
            log-odds are a ln p - b ln(1 - p) + c.
        isotonic: or else the curve from log-odds to probability.
        alarm: what is watched while a run goes on, where good runs allowed it.
        label, runs, bad: what it was fitted on: the label's column, how many runs, how many of them bad.
        auroc: cross-validated, over all of them.
    """

    terms: tuple[Term, ...]
    intercept: float
    beta: tuple[float, float, float] = (1.0, 1.0, 0.0)
    isotonic: Curve | None = None
    alarm: alarms.Alarm | None = None
    label: str = ""
    runs: int = 0
    bad: int = 0
    auroc: float | None = None

    def contributions(self, features: Features) -> list[tuple[float, Term, float]] | None:
        """Log-odds, term and value, of each feature that is known. None where none is."""
        found = []
        for term in self.terms:
            value = getattr(features, term.name)
            if value is not None and math.isfinite(value):
                found.append((term.coefficient * term.deviation(value), term, value))
        return found or None

    def logit(self, contributions: list[tuple[float, Term, float]]) -> float:
        """Log-odds before calibration. A feature that is not known contributes what its typical value does."""
        known = {term.name for _, term, _ in contributions}
        rest = (term.coefficient * term.deviation(term.typical) for term in self.terms if term.name not in known)
        return self.intercept + sum(part for part, _, _ in contributions) + sum(rest)

    def probability(self, logit: float) -> float:
        """Calibrated probability of a run with these log-odds being bad."""
        if self.isotonic is not None:
            return self.isotonic(logit)
        a, b, c = self.beta
        log_p, log_q = -_softplus(-logit), -_softplus(logit)
        return math.exp(-_softplus(-(a * log_p - b * log_q + c)))

    def score(self, features: Features) -> float | None:
        """See :meth:`corevital_otel.risk.model.Scorer.score`."""
        contributions = self.contributions(features) if features.tokens else None
        return None if contributions is None else self.probability(self.logit(contributions))

    def save(self, path: Path) -> None:
        """Write it as JSON, wholly or not at all."""
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n")
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def _softplus(x: float) -> float:
    """ln(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def load(path: Path) -> Profile:
    """Read a profile.

    Raises:
        ProfileError: it cannot be read, is none, or is for another version or features we do not have.
    """
    again = "make one with `corevital calibrate`"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"the profile {path} cannot be read ({error.strerror}): {again}") from None
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"the profile {path} is no JSON ({error}): {again}") from None
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise ProfileError(f"{path} is no profile of corevital's: {again}")
    if (version := found.pop("version", None)) != VERSION:
        raise ProfileError(f"the profile {path} has version {version}, this corevital reads {VERSION}: {again}")
    try:
        profile = _parse(found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ProfileError(f"the profile {path} is damaged ({type(error).__name__} {error}): {again}") from None
    if unknown := [str(term.name) for term in profile.terms if str(term.name) not in FEATURES]:
        raise ProfileError(
            f"the profile {path} is for other features than this corevital measures ({', '.join(unknown)}): {again}"
        )
    return profile


def _parse(found: dict[str, Any]) -> Profile:
    terms = tuple(Term(**{**term, "quantiles": _curve(term["quantiles"])}) for term in found.pop("terms"))
    alarm = found.pop("alarm")
    profile = Profile(
        **{
            **found,
            "terms": terms,
            "beta": tuple(map(float, found["beta"])),
            "isotonic": _curve(found["isotonic"]),
            "alarm": None if alarm is None else alarms.Alarm(alarm["signal"], tuple(map(float, alarm["good"]))),
        }
    )
    numbers = [profile.intercept, *profile.beta]
    numbers += [part for term in terms for part in (term.typical, term.coefficient, term.center, term.scale)]
    numbers_fit = all(map(math.isfinite, numbers)) and len(profile.beta) == 3 and min(profile.beta[:2]) >= 0
    if not numbers_fit or not all(term.scale > 0 for term in terms) or not terms:
        raise ValueError("in its numbers")
    if profile.isotonic is not None and not 0 <= profile.isotonic.y[0] <= profile.isotonic.y[-1] <= 1:
        raise ValueError("in a curve")
    if profile.alarm is not None and (profile.alarm.signal not in alarms.SIGNALS or not _rising(profile.alarm.good)):
        raise ValueError(f"in its alarm: {profile.alarm.signal}")
    return profile


def _curve(points: dict[str, Any] | None) -> Curve | None:
    if points is None:
        return None
    curve = Curve(tuple(map(float, points["x"])), tuple(map(float, points["y"])))
    steps = len(set(curve.x)) == len(curve.x) == len(curve.y)
    if not curve.x or not steps or not _rising(curve.x) or not _rising(curve.y):
        raise ValueError("in a curve")
    return curve


def _rising(values: tuple[float, ...]) -> bool:
    return all(map(math.isfinite, values)) and list(values) == sorted(values)


class CalibratedRisk:
    """Assesses by a profile.

    Args:
        profile: the profile.
        threshold: score from which on a risk is ``high``.
    """

    def __init__(self, profile: Profile, threshold: float) -> None:
        self._profile = profile
        self._threshold = threshold

    def assess(self, features: Features, health: Health, admitted: Admitted) -> Risk:
        """See :meth:`RiskModel.assess`. Factors are what raised the log-odds, strongest first."""
        found = self._profile.contributions(features) if features.tokens else None
        if found is None:
            return Risk(score=None, level="unknown", basis="calibrated")
        score = self._profile.probability(self._profile.logit(found))
        raised = sorted((one for one in found if one[0] >= _NOTABLE), key=lambda one: -one[0])[:_FACTORS]
        factors = tuple(f"{describe(term.name, value)} (typically {number(term.typical)})" for _, term, value in raised)
        return Risk(score=score, level=level(score, self._threshold), basis="calibrated", factors=factors)
