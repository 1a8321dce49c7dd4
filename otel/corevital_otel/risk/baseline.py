"""The basis ``baseline``: a request's rank within this model's own traffic. Needs no labels.

Each of three signals gets its percentile among the last requests of the same model and temperature bucket, ties at
their middle. The percentile of the mean of these, among the same requests, is a request's place. It measures how
unusual a request is, and so controls how often there is an alert. It is not a probability of being bad.

The score is never below what the basis ``prior`` gives a request at that place. So bad traffic is not called usual
because most of it is bad, and the scores of the first requests, which are the prior's, are on the same scale.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

import numpy as np

from corevital.frames.lifecycle import Admitted
from corevital_otel.report import Features, Health, Risk, RiskModel
from corevital_otel.risk.levels import MEDIUM, level
from corevital_otel.risk.prior import score as prior_score
from corevital_otel.risk.table import FloatArray, Runs
from corevital_otel.risk.wording import describe

WINDOW: Final = 1000
"""The last requests of a model and temperature bucket, which new ones are compared with."""
SEEN: Final = 300
"""Requests needed before there is a score."""
RECENT: Final = 100
"""The last requests, which are tested for a shift of traffic."""

_EVERY: Final = 100
"""Requests between two updates: sorting the window at each request would cost most of the time."""
_BUCKETS: Final = 256
"""Models and temperature buckets at most, since adapters can be loaded under any number of names."""
_KS: Final = 2.4
"""The scaled Kolmogorov-Smirnov distance above which two samples of traffic differ: by chance one in 50,000 would, for
each signal."""
_USUAL: Final = 1.5
"""How many times the largest distance that the reference's own parts have from the rest of it counts as usual: tasks
come in blocks, and a block of one task differs from the mix of all."""
_MEDIUM_FROM: Final = 0.7
"""Percentile of the traffic where ``medium`` begins."""
_NOTABLE: Final = 0.9
"""Percentile from which a signal is a factor."""

SIGNALS: Final = {
    "surprisal_sum": 1,
    "surprisal_mean": 1,
    "entropy_max": 1,
}
"""The signals, and the sign that makes high values the risky ones. Total and mean surprisal rank answers of one length
and of all lengths; the lowest margin is not among them, for bfloat16 logits tie and it is 0 in most long answers."""
WIDTH: Final = len(SIGNALS) + 1
"""Numbers kept of a request: its signals, and the prior's score."""
_SIGNS: Final = tuple(SIGNALS.values())
_values: Final = attrgetter(*SIGNALS)


def signals(features: Features) -> tuple[float, ...]:
    """The signals of a sequence, and the prior's score, ``[WIDTH]``; high is risky, NaN is unknown."""
    values = _values(features)
    prior = prior_score(features)
    known = [math.nan if value is None else sign * value for value, sign in zip(values, _SIGNS, strict=True)]
    return (*known, math.nan if prior is None else prior)


class Reference:
    """A sample of traffic that requests are compared with.

    Args:
        rows: ``[n, WIDTH]`` :func:`signals`.
    """

    def __init__(self, rows: FloatArray) -> None:
        priors = rows[:, -1]
        self._priors: list[float] = np.sort(priors[np.isfinite(priors)]).tolist()
        rows = rows[:, :-1]
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
        """The traffic in a table."""
        return cls(np.array([signals(features) for features in runs]))

    def percentiles(self, features: Features) -> dict[str, float]:
        """The percentile of each known signal, 0 to 1: the share of less risky requests; ties count half."""
        return self.percentiles_of(signals(features))

    def percentiles_of(self, row: Sequence[float]) -> dict[str, float]:
        """The same of :func:`signals`."""
        found = {}
        for name, value, line in zip(SIGNALS, row, self._known, strict=False):
            if line and not math.isnan(value):
                found[name] = _share(line, value)
        return found

    def score(self, features: Features) -> float | None:
        """The percentile of the mean percentile among those of the traffic."""
        return self.place(self.percentiles(features)) if features.tokens else None

    def place(self, percentiles: Mapping[str, float]) -> float | None:
        """The percentile of the mean of ``percentiles`` among those of the traffic."""
        return _share(self._means, sum(percentiles.values()) / len(percentiles)) if percentiles else None

    def anchor(self, place: float) -> float:
        """The prior's score at that place among its scores of the traffic, 0 to 1."""
        if not self._priors:
            return 0.0
        at = place * (len(self._priors) - 1)
        below = int(at)
        above = min(below + 1, len(self._priors) - 1)
        return self._priors[below] + (at - below) * (self._priors[above] - self._priors[below])


class Scale:
    """A request's place among the traffic as the score that is served.

    Args:
        threshold: score from which a risk is ``high``.
        alert_rate: share of the usual traffic that is ``high`` at least.
    """

    def __init__(self, threshold: float = 0.7, alert_rate: float = 0.05) -> None:
        self._places = (0.0, min(_MEDIUM_FROM, 1.0 - alert_rate), 1.0 - alert_rate, 1.0)
        self._scores = (0.0, min(MEDIUM, threshold), threshold, 1.0)

    def score(self, reference: Reference, place: float) -> float:
        """The score, 0 to 1: never below the prior's at that place."""
        return max(_between(place, self._places, self._scores), reference.anchor(place))


@dataclass(frozen=True, slots=True)
class Served:
    """Scores runs as a server with this reference would."""

    reference: Reference
    scale: Scale = field(default_factory=Scale)

    def score(self, features: Features) -> float | None:
        """See :meth:`corevital_otel.risk.levels.Scorer.score`."""
        place = self.reference.score(features)
        return None if place is None else self.scale.score(self.reference, place)


def _share(line: list[float], value: float) -> float:
    return (bisect_left(line, value) + bisect_right(line, value)) / (2 * len(line))


def _between(value: float, at: Sequence[float], heights: Sequence[float]) -> float:
    """Linear interpolation, as ``numpy.interp``, which is slow for a single number."""
    i = min(max(bisect_right(at, value), 1), len(at) - 1)
    width = at[i] - at[i - 1]
    share = (value - at[i - 1]) / width if width > 0 else 1.0
    return heights[i - 1] + min(max(share, 0.0), 1.0) * (heights[i] - heights[i - 1])


def bucket(temperature: float | None) -> str:
    """The bucket of a temperature; None is the engine's default, 1."""
    value = 1.0 if temperature is None else temperature
    return "0" if value <= 0.0 else "0-0.5" if value <= 0.5 else "0.5-1" if value <= 1.0 else "1-"


class Traffic:
    """The last requests of one model and temperature bucket, and the reference that requests are compared with.

    While the last :data:`RECENT` requests differ from the reference, the traffic has shifted, and the reference stays.
    After a shift of :data:`SEEN` requests the reference is replaced by them. So broken or foreign requests at the start
    cost that many requests, and no more.

    Attributes:
        reference: compared with; None until enough requests have been seen.
        shifted: whether the traffic differs from the reference.
    """

    def __init__(self) -> None:
        self.reference: Reference | None = None
        self.shifted = False
        self._rows = np.empty((WINDOW, WIDTH))  # a ring
        self._compared = self._rows[:0]
        self._held = self._at = self._new = self._shifted_for = 0

    def add(self, row: Sequence[float]) -> None:
        """Add a request's :func:`signals`."""
        self._rows[self._at] = row
        self._at = (self._at + 1) % WINDOW
        self._held = min(self._held + 1, WINDOW)
        self._new += 1
        if self._new >= _EVERY and self._held >= SEEN:
            self._look()
            self._new = 0

    def _look(self) -> None:
        rows = np.roll(self._rows, -self._at, axis=0)[-self._held :]
        self.shifted = self.reference is not None and differ(self._compared, rows[-RECENT:])
        self._shifted_for = self._shifted_for + self._new if self.shifted else 0
        if self._shifted_for >= SEEN:
            rows = rows[-SEEN:]
            self._held = SEEN
            self.shifted, self._shifted_for = False, 0
        if not self.shifted:
            self._compared, self.reference = rows, Reference(rows)


def differ(before: FloatArray, now: FloatArray) -> bool:
    """Whether a sample of traffic differs in any signal from the one before it, more than that differs in itself.

    The distance is that of the two-sample Kolmogorov-Smirnov test. What is usual is measured on parts of
    :data:`RECENT` successive requests of the earlier sample, each against the rest of it.

    Args:
        before: ``[n, WIDTH]`` :func:`signals`, oldest first.
        now: ``[m, WIDTH]``.
    """
    for old, new in zip(before.T[:-1], now.T[:-1], strict=True):
        if (far := _distance(old, new)) <= _KS:
            continue
        starts = range(0, len(old) - RECENT + 1, RECENT) if len(old) >= 2 * RECENT else ()
        parts = [np.arange(len(old)) // RECENT == start // RECENT for start in starts]
        usual = max((_distance(old[~part], old[part]) for part in parts), default=0.0)
        if far > _USUAL * usual:
            return True
    return False


def _distance(old: FloatArray, new: FloatArray) -> float:
    """The scaled Kolmogorov-Smirnov distance of two samples; 0 with too few known values."""
    old, new = np.sort(old[np.isfinite(old)]), np.sort(new[np.isfinite(new)])
    if len(old) < RECENT or len(new) < RECENT / 2:
        return 0.0
    points = np.concatenate((old, new))
    shares = (np.searchsorted(line, points, "right") / len(line) for line in (old, new))
    return float(np.abs(np.subtract(*shares)).max() / math.sqrt(1 / len(old) + 1 / len(new)))


class BaselineRisk:
    """Assesses by earlier traffic, and learns from each request without a fault flag.

    The score is scaled so that at least the riskiest ``alert_rate`` of the usual traffic is at the threshold or above,
    and at least three in ten are ``medium`` or above. More are where the prior's scores of the traffic are higher.

    Args:
        threshold: score from which a risk is ``high``.
        alert_rate: share of the usual traffic that is ``high``.
        until: assesses until enough requests have been seen; None: no score until then.
        learned: called for each request learned from, with model, bucket and signals.
    """

    def __init__(
        self,
        threshold: float,
        alert_rate: float,
        until: RiskModel | None,
        learned: Callable[[str, str, Sequence[float]], None] = lambda *_: None,
    ) -> None:
        self._threshold = threshold
        self._scale = Scale(threshold, alert_rate)
        self._until = until
        self._learned = learned
        self._traffic: dict[tuple[str, str], Traffic] = {}

    def remember(self, learned: Iterable[tuple[str, str, Sequence[float]]]) -> None:
        """Learn what was learned before a restart, oldest first."""
        for model, of, row in learned:
            if (traffic := self._of(model, of)) is not None:
                traffic.add(row)

    def assess(self, features: Features, health: Health, admitted: Admitted) -> Risk:
        """See :meth:`RiskModel.assess`. Factors are the signals at percentile 0.9 or above, strongest first."""
        of = bucket(admitted.temperature)
        traffic = self._of(admitted.model, of)
        row = signals(features)
        risk = self._assess(traffic, row, features, health, admitted)
        if traffic is not None and features.tokens and features.entropy_mean is not None and not health.fault_flags:
            traffic.add(row)
            self._learned(admitted.model, of, row)
        return risk

    def _assess(
        self, traffic: Traffic | None, row: Sequence[float], features: Features, health: Health, admitted: Admitted
    ) -> Risk:
        if traffic is None or traffic.reference is None:
            nothing = Risk(score=None, level="unknown", basis="baseline")
            return nothing if self._until is None else self._until.assess(features, health, admitted)
        percentiles = traffic.reference.percentiles_of(row) if features.tokens else {}
        place = traffic.reference.place(percentiles)
        if place is None:
            return Risk(score=None, level="unknown", basis="baseline", shifted=traffic.shifted)
        score = self._scale.score(traffic.reference, place)
        raised = sorted(
            [(share, name) for name, share in percentiles.items() if share >= _NOTABLE], key=lambda one: -one[0]
        )
        factors = tuple(
            [
                f"{describe(name, getattr(features, name))} ({'above' if SIGNALS[name] > 0 else 'below'} "
                f"{min(share, 0.99):.0%} of this model's requests)"
                for share, name in raised
            ]
        )
        return Risk(
            score=score,
            level=level(score, self._threshold),
            basis="baseline",
            factors=factors,
            shifted=traffic.shifted,
        )

    def _of(self, model: str, of: str) -> Traffic | None:
        if (model, of) not in self._traffic and len(self._traffic) < _BUCKETS:
            self._traffic[model, of] = Traffic()
        return self._traffic.get((model, of))
