"""What is measured on the rows: each basis within tasks, profiles on few labels, alarms, transfer, order of traffic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from integration.bench.real.rows import Rows
from scipy.stats import rankdata

from corevital.frames.lifecycle import Admitted
from corevital_otel.calibration.alarm_choice import trials
from corevital_otel.calibration.evaluation import Measures, evaluate
from corevital_otel.calibration.fitting import FitError, fit
from corevital_otel.report import Health
from corevital_otel.risk.baseline import BaselineRisk, Reference, Served
from corevital_otel.risk.calibrated import Profile
from corevital_otel.risk.directions import DIRECTIONS
from corevital_otel.risk.levels import Scorer
from corevital_otel.risk.prior import PriorRisk
from corevital_otel.risk.table import Runs, scores

Array = npt.NDArray[Any]

LABELS: Final = (50, 200)
DRAWS: Final = 20
"""Random sets of labels that a profile is fitted on; each is measured on all other answers."""
THRESHOLD: Final = 0.7
ALERT_RATE: Final = 0.05
ALARM_RATE: Final = 0.05
_HEALTHY: Final = Health()


def measure(values: Array, rows: Rows, resamples: int = 1000) -> Measures:
    """Measures within the rows' groups."""
    return evaluate(values, rows["wrong"], rows.groups, resamples=resamples).overall


def auroc(values: Array, rows: Rows) -> float:
    """Share of pairs within groups in the right order."""
    return measure(values, rows, 1).auroc or 0.0


def prior(rows: Rows) -> Array:
    """Scores of the basis ``prior``."""
    return scores(PriorRisk(THRESHOLD), rows.runs)


def baseline(rows: Rows) -> Array:
    """Each answer's rank among all of its temperature, as ``corevital evaluate baseline`` has it."""
    found = np.full(len(rows), np.nan)
    for temperature in np.unique(rows["temperature"]):
        of = rows["temperature"] == temperature
        runs = rows.runs.take(of)
        found[of] = scores(Served(Reference.of(runs)), runs)
    return found


def signals(rows: Rows) -> dict[str, Array]:
    """The rank of each feature with a known direction, high where it is risky; unknown ones as the typical one."""
    found = {}
    for name, direction in DIRECTIONS.items():
        column = rows.runs.columns.get(name)
        if column is not None and np.isfinite(column).mean() > 0.5:
            values = direction * np.where(np.isfinite(column), column, np.nanmedian(column))
            found[name] = (rankdata(values) - 0.5) / len(values)
    return found


def best_signal(rows: Rows) -> tuple[str, Array]:
    """The single signal that ranks these rows best: chosen with their labels, so nothing can know it before."""
    found = signals(rows)
    name = max(found, key=lambda one: auroc(found[one], rows))
    return name, found[name]


@dataclass(frozen=True, slots=True)
class Draw:
    """A profile fitted on some labels.

    Attributes:
        profile: the profile, or None where these labels make none.
        labelled, rest: the rows it was fitted on, and the others.
    """

    profile: Profile | None
    labelled: Rows
    rest: Rows


def draws(rows: Rows, labels: int, count: int = DRAWS) -> Iterator[Draw]:
    """Profiles on random sets of labels; none where fewer than half of the rows would be left to measure on."""
    for seed in range(count if len(rows) >= 2 * labels else 0):
        order = np.random.default_rng(seed).permutation(len(rows))
        labelled, rest = rows.take(order[:labels]), rows.take(order[labels:])
        try:
            profile = fit(labelled.runs, labelled["wrong"])
        except FitError:
            profile = None
        yield Draw(profile, labelled, rest)


def scored(scorer: Scorer, runs: Runs) -> Array:
    """Scores of runs."""
    return scores(scorer, runs)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Over the draws: AUROC within tasks, ECE, AUROC minus that of the best single signal; alarms.

    Attributes:
        auroc, ece, gain: one number a draw.
        false, found: shares of good and of bad runs that alarmed, one a draw with an alarm.
        dead: profiles with an alarm that no run at all raised.
        none: profiles without an alarm at this rate: no useful signal, or too few good runs.
        wrong_way: weights against the known direction, over all draws.
    """

    auroc: list[float]
    ece: list[float]
    gain: list[float]
    false: list[float]
    found: list[float]
    dead: int
    none: int
    wrong_way: int


def calibrated(rows: Rows, labels: int) -> Calibrated:
    """A profile on so many labels, over the draws."""
    result = Calibrated([], [], [], [], [], 0, 0, 0)
    dead = none = wrong_way = 0
    name, _ = best_signal(rows)
    for draw in draws(rows, labels):
        if draw.profile is None:
            continue
        of = measure(scored(draw.profile, draw.rest.runs), draw.rest, 1)
        result.auroc.append(of.auroc or 0.0)
        result.ece.append(of.ece)
        result.gain.append((of.auroc or 0.0) - auroc(signals(draw.rest)[name], draw.rest))
        wrong_way += sum(term.coefficient * DIRECTIONS.get(term.name, 0) < 0 for term in draw.profile.terms)
        alarm, bad = draw.profile.alarm, draw.rest["wrong"]
        if alarm is None or math.isinf(limit := alarm.threshold(ALARM_RATE)):
            none += 1
            continue
        over = np.array([(value := alarm.value(one)) is not None and value > limit for one in draw.rest.runs])
        dead += not over.any()
        result.false.append(float(over[~bad].mean()))
        result.found.append(float(over[bad].mean()))
    return dataclasses.replace(result, dead=dead, none=none, wrong_way=wrong_way)


def transfer(rows: Rows, seeds: int = 6) -> list[tuple[float, float]]:
    """A profile on half of the tasks: AUROC on the other half, and that of the prior there."""
    kinds = np.unique(rows["kind"])
    found = []
    for seed in range(seeds):
        half = np.random.default_rng(seed).permutation(kinds)[: len(kinds) // 2]
        for inside in (True, False):
            known = np.isin(rows["kind"], half) == inside
            labelled, rest = rows.take(known), rows.take(~known)
            profile = fit(labelled.runs, labelled["wrong"])
            found.append((auroc(scored(profile, rest.runs), rest), auroc(prior(rest), rest)))
    return found


def served(rows: Rows, order: Sequence[int] | Array) -> tuple[Array, Array, Array]:
    """As a server from a cold start scores the rows in this order.

    Returns:
        Of each row: score, whether it was the baseline's, whether the traffic counted as shifted.
    """
    basis = BaselineRisk(THRESHOLD, ALERT_RATE, PriorRisk(THRESHOLD))
    features = list(rows.runs)
    score, by_baseline, shifted = np.full(len(rows), np.nan), np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    for at in order:
        admitted = Admitted(
            request_id="r", engine_id="r", sequence=0, operation="chat", model="m", arrival_ns=0,
            prompt_tokens=int(rows["prompt_tokens"][at]), temperature=float(rows["temperature"][at]),
        )  # fmt: skip
        risk = basis.assess(features[at], _HEALTHY, admitted)
        score[at] = np.nan if risk.score is None else risk.score
        by_baseline[at], shifted[at] = risk.basis == "baseline", risk.shifted
    return score, by_baseline, shifted


def shuffled(rows: Rows, seed: int) -> Array:
    """An order in which the kinds of task are mixed."""
    return np.random.default_rng(seed).permutation(len(rows))


def in_blocks(rows: Rows, seed: int) -> Array:
    """An order in which they come one after another, each twice: half of a kind's answers, later the other half."""
    rng = np.random.default_rng(seed)
    parts = [
        part
        for kind in np.unique(rows["kind"])
        for part in np.array_split(rng.permutation(np.flatnonzero(rows["kind"] == kind)), 2)
    ]
    return np.concatenate([parts[at] for at in rng.permutation(len(parts))])


def alarm_trials(rows: Rows) -> list[tuple[str, float, int, int]]:
    """Of each signal: its share of bad runs found, and runs alarmed on; for reading, not for a table."""
    return [(one.alarm.signal, one.found, one.good[0], one.bad[0]) for one in trials(rows.runs, rows["wrong"])]
