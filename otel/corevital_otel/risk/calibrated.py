"""The basis ``calibrated``: a profile fitted on labelled runs, and its score.

The model is a logistic regression on transformed features; a monotone curve turns its output into a probability. A
feature contributes its coefficient times its deviation from the fitted runs, in log-odds. The factors are the largest
contributions, so they are exactly what raised the score.
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from corevital.frames.lifecycle import Admitted
from corevital.log import warn_once
from corevital.text import printable
from corevital_otel.conventions import FEATURES
from corevital_otel.report import Features, Health, Risk
from corevital_otel.risk import alarm as alarms
from corevital_otel.risk.directions import DIRECTIONS
from corevital_otel.risk.levels import level
from corevital_otel.risk.wording import describe, number

FORMAT: Final = "corevital-profile"
VERSION: Final = 1
_FACTORS: Final = 5
_NOTABLE: Final = 0.1
"""Log-odds from which a contribution is a factor."""
_PLACE: Final = 60
"""Characters of the place in a damaged file."""
_UNKNOWN: Final = ("", "unknown")
"""An engine or a stage that nobody has named."""
_CAP: Final = 4.0
"""Limit of a deviation: a line fitted on the data does not hold far outside of it."""


class ProfileError(ValueError):
    """A profile cannot be used. The text is one line that names the cause and the fix."""


_EXACTLY: Final = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class Curve:
    """A monotone piecewise-linear function, constant outside of its points."""

    __pydantic_config__ = _EXACTLY

    x: tuple[FiniteFloat, ...]
    y: tuple[FiniteFloat, ...]

    def __call__(self, value: float) -> float:
        """The curve at ``value``."""
        if value <= self.x[0]:
            return self.y[0]
        if value >= self.x[-1]:
            return self.y[-1]
        i = bisect_right(self.x, value)
        share = (value - self.x[i - 1]) / (self.x[i] - self.x[i - 1])
        return self.y[i - 1] + share * (self.y[i] - self.y[i - 1])


def _rises(curve: Curve) -> Curve:
    """Refuse a curve that is empty, falls, or has two heights at one place."""
    x, y = list(curve.x), list(curve.y)
    if not x or len(x) != len(y) or x != sorted(set(x)) or y != sorted(y):
        raise ValueError("the curve does not rise")
    return curve


def _is_probability(curve: Curve) -> Curve:
    if not 0 <= curve.y[0] <= curve.y[-1] <= 1:
        raise ValueError("the curve leaves 0 to 1")
    return curve


def _is_usable(alarm: alarms.Alarm) -> alarms.Alarm:
    if alarm.signal not in alarms.SIGNALS:
        raise ValueError(f"unknown signal {alarm.signal}")
    if not all(map(math.isfinite, alarm.good)) or list(alarm.good) != sorted(alarm.good):
        raise ValueError("the maxima are not sorted")
    return alarm


_Rising = Annotated[Curve, AfterValidator(_rises)]
_Slope = Annotated[FiniteFloat, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Term:
    """One feature in the model.

    Attributes:
        name: of the feature.
        typical: the median over the fitted runs; used where the feature is unknown.
        coefficient: log-odds per deviation.
        center, scale: of the signed logarithm sign(x) log(1 + \\|x\\|); unused with a curve.
        quantiles: the curve from the feature to the normal deviate of its quantile, or None.
    """

    __pydantic_config__ = _EXACTLY

    name: str
    typical: FiniteFloat
    coefficient: FiniteFloat
    center: FiniteFloat
    scale: Annotated[FiniteFloat, Field(gt=0)]
    quantiles: _Rising | None

    def deviation(self, value: float) -> float:
        """The deviation of a value, in standard deviations of the transformed feature."""
        if self.quantiles is not None:
            return self.quantiles(value)
        deviation = (math.copysign(math.log1p(abs(value)), value) - self.center) / self.scale
        return min(max(deviation, -_CAP), _CAP)


@dataclass(frozen=True, slots=True)
class Profile:
    """A fitted model. See :func:`corevital_otel.calibration.fitting.fit`.

    Attributes:
        terms: its features.
        intercept: log-odds of a run without deviation.
        beta: a, b and c of beta calibration (Kull, Silva Filho and Flach 2017): with p the uncalibrated probability,
            the log-odds are a ln p - b ln(1 - p) + c.
        isotonic: the curve from log-odds to probability, instead of ``beta``; or None.
        alarm: what is watched during a run, or None.
        label, runs, bad: the fitted data: the label's column, the number of runs, and of bad ones.
        auroc: cross-validated, over all runs.
        engines, stages: where the fitted runs come from, by ``corevital.engine`` and ``corevital.logits.stage``; empty
            where it is not known.
    """

    __pydantic_config__ = _EXACTLY

    terms: Annotated[tuple[Term, ...], Field(min_length=1)]
    intercept: FiniteFloat
    beta: tuple[_Slope, _Slope, FiniteFloat]
    isotonic: Annotated[_Rising, AfterValidator(_is_probability)] | None
    alarm: Annotated[alarms.Alarm, AfterValidator(_is_usable)] | None
    label: str = ""
    runs: int = 0
    bad: int = 0
    auroc: float | None = None
    engines: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    def origin(self) -> str:
        """Where the fitted runs come from, in words; "" where nothing is known."""
        stages = " and ".join(self.stages)
        return ", ".join(filter(None, (" and ".join(self.engines), stages and f"stage {stages}")))

    def weaknesses(self) -> str:
        """What is wrong with a profile that an older version fitted, and the fix; "" where nothing is."""
        found = [term.name for term in self.terms if term.coefficient * DIRECTIONS.get(term.name, 0) < 0]
        texts = [f"weights against the known direction of {', '.join(found)}"] if found else []
        if self.alarm is not None and self.alarm.is_stuck(alarms.RATE):
            texts.append(f"an alarm on {self.alarm.signal} that can never be raised")
        return f"it has {' and '.join(texts)}: fit it again with `corevital calibrate`" if texts else ""

    def differs(self, engine: str, stage: str) -> str:
        """A warning where this profile was fitted on another engine or stage; "" where it was not, or is not known."""
        other_engine = self.engines and engine not in (*self.engines, *_UNKNOWN)
        other_stage = self.stages and stage not in (*self.stages, *_UNKNOWN)
        if not other_engine and not other_stage:
            return ""
        return (
            f"the profile was fitted on {self.origin()}, and is used on {engine}, stage {stage}: its scores may be "
            "off; measure it there with `corevital evaluate`, or calibrate on labelled runs from there"
        )

    def contributions(self, features: Features) -> list[tuple[float, Term, float]] | None:
        """Log-odds, term and value of each known feature; None without any."""
        found = []
        for term in self.terms:
            value = getattr(features, term.name)
            if value is not None and math.isfinite(value):
                found.append((term.coefficient * term.deviation(value), term, value))
        return found or None

    def logit(self, contributions: list[tuple[float, Term, float]]) -> float:
        """Log-odds before calibration. An unknown feature contributes as its typical value does."""
        known = {term.name for _, term, _ in contributions}
        rest = (term.coefficient * term.deviation(term.typical) for term in self.terms if term.name not in known)
        return self.intercept + sum(part for part, _, _ in contributions) + sum(rest)

    def probability(self, logit: float) -> float:
        """Calibrated probability that a run with these log-odds is bad."""
        if self.isotonic is not None:
            return self.isotonic(logit)
        a, b, c = self.beta
        log_p, log_q = -_softplus(-logit), -_softplus(logit)
        return math.exp(-_softplus(-(a * log_p - b * log_q + c)))

    def score(self, features: Features) -> float | None:
        """See :meth:`corevital_otel.risk.levels.Scorer.score`."""
        contributions = self.contributions(features) if features.tokens else None
        return None if contributions is None else self.probability(self.logit(contributions))

    def save(self, path: Path) -> None:
        """Write the profile as JSON, atomically."""
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        label = self.label.encode(errors="replace").decode()  # a command line may hold bytes that are not UTF-8
        saved = {"format": FORMAT, "version": VERSION, **asdict(self), "label": label}
        try:
            beside.write_text(json.dumps(saved, indent=1) + "\n")
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def _softplus(x: float) -> float:
    """ln(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _explains(contribution: tuple[float, Term, float]) -> bool:
    """Whether it raised the score notably, and the value is on the risky side of what is typical."""
    raised, term, value = contribution
    direction = DIRECTIONS.get(term.name, math.copysign(1.0, term.coefficient))
    return raised >= _NOTABLE and (value - term.typical) * direction > 0.0


def load(path: Path) -> Profile:
    """Read a profile.

    Raises:
        ProfileError: the file cannot be read, is not a valid profile, or needs another version or other features.
    """
    again = "make one with `corevital calibrate`"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"the profile {path} cannot be read ({error.strerror}): {again}") from None
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"the profile {path} is not JSON ({error}): {again}") from None
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise ProfileError(f"{path} is not a corevital profile: {again}")
    if (version := found.pop("version", None)) != VERSION:
        raise ProfileError(f"the profile {path} has version {version}, this corevital reads {VERSION}: {again}")
    try:
        profile = TypeAdapter(Profile).validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = printable(".".join(map(str, first["loc"])), _PLACE)
        raise ProfileError(f"the profile {path} is damaged ({where}: {first['msg']}): {again}") from None
    if unknown := [term.name for term in profile.terms if term.name not in FEATURES]:
        raise ProfileError(
            f"the profile {path} is for other features than this corevital measures ({', '.join(unknown)}): {again}"
        )
    return profile


class CalibratedRisk:
    """Assesses by a profile.

    Args:
        profile: the fitted profile.
        threshold: score from which a risk is ``high``.
    """

    def __init__(self, profile: Profile, threshold: float) -> None:
        self._profile = profile
        self._threshold = threshold
        self._names_origin = bool(profile.origin())

    def assess(self, features: Features, health: Health, admitted: Admitted) -> Risk:
        """See :meth:`RiskModel.assess`. Factors are what raised the log-odds, strongest first.

        The first sequence from another engine or stage than the profile's causes a warning.
        """
        found = self._profile.contributions(features) if features.tokens else None
        if found is None:
            return Risk(score=None, level="unknown", basis="calibrated")
        if self._names_origin and (text := self._profile.differs(admitted.engine, admitted.stage)):
            warn_once("profile", "%s", text)
        score = self._profile.probability(self._profile.logit(found))
        raised = sorted(filter(_explains, found), key=lambda one: -one[0])[:_FACTORS]
        factors = tuple(f"{describe(term.name, value)} (typically {number(term.typical)})" for _, term, value in raised)
        return Risk(score=score, level=level(score, self._threshold), basis="calibrated", factors=factors)
