"""The ways to score a run that are compared: each knows the calibration set and scores the held-out one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from integration.bench.risk.table import Table

from corevital_otel.calibration.evaluation import Measures, evaluate
from corevital_otel.calibration.fitting import fit
from corevital_otel.risk.baseline import Reference, Served
from corevital_otel.risk.prior import PriorRisk
from corevital_otel.risk.table import scores

Scores = npt.NDArray[np.float64]
Method = Callable[[Table, Table], Scores]
"""Takes the calibration set and the held-out set and scores the latter."""

LABELS = 400
RATES = (0.05, 0.1, 0.2)
"""False-alarm rates asked for."""


SIGNALS = {"mean entropy": "entropy_mean", "max entropy": "entropy_max", "total entropy ΣH": "entropy_sum"}
"""Single signals: they rank, and are not probabilities."""


def _signal(name: str) -> Method:
    return lambda _, test: test.runs.columns[name]


def _calibrated(labels: int) -> Method:
    def method(calibration: Table, test: Table) -> Scores:
        labelled = calibration.first(labels)
        return scores(fit(labelled.runs, labelled.wrong), test.runs)

    return method


def _boosting(calibration: Table, test: Table) -> Scores:
    from sklearn.ensemble import GradientBoostingClassifier

    labelled, names = calibration.first(LABELS), sorted(test.runs.columns)
    known, new = (np.nan_to_num(np.column_stack([part.runs.columns[n] for n in names])) for part in (labelled, test))
    model = GradientBoostingClassifier(n_estimators=60, random_state=0).fit(known, labelled.wrong)
    found: Scores = model.predict_proba(new)[:, 1]
    return found


METHODS: dict[str, Method] = {
    "peer's documented formula": lambda _, test: test.columns["peer"].astype(float),
    **{name: _signal(feature) for name, feature in SIGNALS.items()},
    "`prior`": lambda _, test: scores(PriorRisk(0.7), test.runs),
    "`baseline`, no labels": lambda calibration, test: scores(Served(Reference.of(calibration.runs)), test.runs),
    **{f"`calibrated`, {labels} labels": _calibrated(labels) for labels in (50, 200, LABELS)},
    f"gradient boosting, {LABELS} labels": _boosting,
}
COMPARED = ("peer's documented formula", "max entropy", "`baseline`, no labels", f"`calibrated`, {LABELS} labels")
"""Those whose dependence on planted errors is shown."""


def measures(table: Table, names: Iterable[str] = METHODS) -> dict[str, Measures]:
    """Of methods on a seed's held-out set, within kinds of task."""
    calibration, test = (table.where(set=name, part="whole") for name in ("calibration", "test"))
    return {name: _measure(METHODS[name](calibration, test), test) for name in names}


def half(table: Table) -> Measures:
    """The same of a profile for the first half of the tokens."""
    calibration, test = (table.where(set=name, part="half") for name in ("calibration", "test"))
    return _measure(_calibrated(LABELS)(calibration, test), test)


def _measure(found: Scores, test: Table) -> Measures:
    return evaluate(found, test.wrong, test.columns["kind"].tolist(), resamples=1).overall


def alarms_of(table: Table) -> tuple[str, dict[float, tuple[float, float]]]:
    """The signal that is watched; and of each rate asked for the shares of the held-out right and wrong answers that
    raised the alarm while running. The right answers of the whole calibration set are what is known to be good."""
    labelled = table.where(set="calibration", part="whole")
    test = table.where(set="test", part="whole")
    alarm = fit(labelled.runs, labelled.wrong).alarm
    if alarm is None:
        raise RuntimeError("no signal to alarm on")
    reached = np.array([alarm.value(features) for features in test.runs], float)
    over = {rate: reached > alarm.threshold(rate) for rate in RATES}
    return alarm.signal, {r: (float(o[~test.wrong].mean()), float(o[test.wrong].mean())) for r, o in over.items()}
