"""Shifts of signals and rates of flags, each with an interval and a test that allows for all the others."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final, Literal

from corevital_otel.compare.pairs import Samples
from corevital_otel.compare.signals import FAULTS, FLAGS, RISK, SIGNALS, Signal, has
from corevital_otel.risk.table import FloatArray

Change = Literal["same", "better", "worse", "changed", "cannot say yet"]

ALPHA: Final = 0.05
"""Chance that any signal or flag is called better or worse where nothing has changed."""
SAME_WITHIN: Final = 0.2
"""Standard deviations of A's requests: a shift that is surely smaller counts as none."""
LEAST: Final = 30
"""Units of each side without which the verdict stays open: the tests of means need about so many."""
TESTS: Final = sum(signal.sign != 0 for signal in SIGNALS) + len(FAULTS) + 1
"""Tests that decide: signals, flags, and whether prompts are answered alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A signal of both sides.

    Attributes:
        signal, unit: what it is.
        units: of A and of B: prompts, or requests where there is no hash.
        a, b: means.
        shift, low, high: ``b - a``, and its interval: 95 % for all signals and flags together (Bonferroni).
        p: Welch's test, or Student's of pairs; times the number of tests, at most 1.
        deviations: the shift in standard deviations of A.
        change: what follows. A signal that is only reported is ``changed`` where its shift is significant.
        needed: times the traffic until the interval would fit into :data:`SAME_WITHIN`; None where it cannot.
    """

    signal: str
    unit: str
    units: tuple[int, int]
    a: float
    b: float
    shift: float
    low: float
    high: float
    p: float
    deviations: float
    change: Change
    needed: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A flag of both sides.

    Attributes:
        flag: its name.
        units: of A and of B.
        a, b: share of the units with it.
        a_interval, b_interval: 95 % (Wilson).
        p: Fisher's exact test, or the sign test of pairs; times the number of tests, at most 1.
        change: what follows. One that is not a fault flag is ``changed`` where its rate is.
    """

    flag: str
    units: tuple[int, int]
    a: float
    b: float
    a_interval: tuple[float, float]
    b_interval: tuple[float, float]
    p: float
    change: Change


def shifts(samples: Samples) -> list[Shift]:
    """The shift of each signal that both sides know of two units and of half of them, at least."""
    found = []
    for signal in SIGNALS:
        a, b = samples.means(signal.value)
        known = all(len(some) >= max(2, len(units) / 2) for some, units in ((a, samples.a), (b, samples.b)))
        if known and (signal.name != RISK or _same_basis(samples)):
            found.append(_shift(signal, a, b, matched=samples.matched))
    return found


def _same_basis(samples: Samples) -> bool:
    """Whether risk scores rest on the same. A ``baseline`` ranks a model among its own traffic: the same for any."""
    bases = [{report.risk_basis for unit in units for report in unit} for units in (samples.a, samples.b)]
    return bases == [{"prior"}, {"prior"}]


def _shift(signal: Signal, a: FloatArray, b: FloatArray, *, matched: bool) -> Shift:
    shift = float(b.mean() - a.mean())
    low, high, p = _test(a, b, matched=matched)
    p = min(1.0, p * TESTS)
    scale = float(a.std(ddof=1))
    deviations = shift / scale if scale else 0.0
    room, half = SAME_WITHIN * scale, (high - low) / 2
    change: Change = "cannot say yet"
    if min(len(a), len(b)) < LEAST:
        pass
    elif p < ALPHA:
        change = ("worse" if shift * signal.sign > 0 else "better") if signal.sign else "changed"
    elif -room <= low and high <= room:
        change = "same"
    return Shift(
        signal=signal.name,
        unit=signal.unit,
        units=(len(a), len(b)),
        a=float(a.mean()),
        b=float(b.mean()),
        shift=shift,
        low=low,
        high=high,
        p=p,
        deviations=deviations,
        change=change,
        needed=(half / room) ** 2 if room else None,
    )


def _test(a: FloatArray, b: FloatArray, *, matched: bool) -> tuple[float, float, float]:
    """Simultaneous interval of the difference of means, and p."""
    from scipy import stats  # type: ignore[import-untyped]

    spread = (b - a).std() if matched else a.std() + b.std()
    shift = float(b.mean() - a.mean())
    if spread <= 1e-9 * max(abs(a.mean()), abs(b.mean())):  # constant: a test would divide by zero
        return shift, shift, 1.0 if abs(shift) <= 1e-9 * max(abs(a.mean()), abs(b.mean())) else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side is constant: the other's spread counts
        found: Any = stats.ttest_rel(b, a) if matched else stats.ttest_ind(b, a, equal_var=False)
    interval = found.confidence_interval(1 - ALPHA / TESTS)
    return float(interval.low), float(interval.high), float(found.pvalue)


def rates(samples: Samples) -> list[Rate]:
    """The rate of each flag."""
    return [_rate(flag, samples) for flag in FLAGS]


def _rate(flag: str, samples: Samples) -> Rate:
    from scipy import stats

    a, b = samples.firsts(lambda report: has(flag, report))
    if samples.matched:
        more, fewer = int((b & ~a).sum()), int((a & ~b).sum())
        p = float(stats.binomtest(more, more + fewer).pvalue) if more + fewer else 1.0
    else:
        p = float(stats.fisher_exact([[a.sum(), (~a).sum()], [b.sum(), (~b).sum()]]).pvalue)
    unclear = flag in FAULTS and p < ALPHA and b.mean() > a.mean()  # alone it would be worse: not the same
    p = min(1.0, p * TESTS)
    intervals = [stats.binomtest(int(side.sum()), len(side)).proportion_ci(method="wilson") for side in (a, b)]
    change: Change = "cannot say yet" if unclear or min(len(a), len(b)) < LEAST else "same"
    if min(len(a), len(b)) >= LEAST and p < ALPHA:
        change = ("worse" if b.mean() > a.mean() else "better") if flag in FAULTS else "changed"
    (a_low, a_high), (b_low, b_high) = ((float(one.low), float(one.high)) for one in intervals)
    return Rate(
        flag=flag,
        units=(len(a), len(b)),
        a=float(a.mean()),
        b=float(b.mean()),
        a_interval=(a_low, a_high),
        b_interval=(b_low, b_high),
        p=p,
        change=change,
    )
