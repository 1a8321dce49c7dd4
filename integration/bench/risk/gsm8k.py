"""CoreVital's own table: 323 answers of an 8B model to grade-school mathematics, with its scores and what was right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from integration.bench.risk.methods import SIGNALS, Scores
from integration.bench.risk.table import Table, read

from corevital_otel.calibration.evaluation import Measures, evaluate
from corevital_otel.calibration.fitting import fit
from corevital_otel.risk.baseline import Reference
from corevital_otel.risk.levels import Scorer
from corevital_otel.risk.prior import PriorRisk
from corevital_otel.risk.table import scores

PATH = Path(__file__).with_name("gsm8k_llama.csv")
FOLDS = 5
_PROFILE = "`calibrated`, 200 labels"


def answers() -> tuple[Table, int]:
    """The answers, and how many truncated ones were left out."""
    table = read(PATH)
    table.columns["wrong"] = table.columns["failure"]  # 0 or 1
    whole = table.where(format_failure="False")
    return whole, len(table.wrong) - len(whole.wrong)


def measures(table: Table) -> dict[str, Measures]:
    """Of each score, within the model; the `baseline` and the profile know only the four fifths they do not score.

    The profile's row has the AUROC within fifths: each fifth has its own profile, on another scale. The baseline's is
    of places, which are on one scale: a served score is not.
    """
    runs = table.runs
    found = {
        "peer's `risk_score`": table.columns["risk_score"].astype(float),
        "peer's `failure_risk`": table.columns["failure_risk"].astype(float),
        **{name: runs.columns[feature] for name, feature in SIGNALS.items()},
        "`prior`": scores(PriorRisk(0.7), runs),
        "`baseline`, no labels": _folded(table, lambda known: Reference.of(known.runs)),
        _PROFILE: _folded(table, lambda known: fit(known.runs, known.wrong)),
    }
    measured = {name: evaluate(values, table.wrong).overall for name, values in found.items()}
    of = evaluate(found[_PROFILE], table.wrong, _fold(table).astype(str).tolist()).overall
    measured[_PROFILE] = replace(measured[_PROFILE], auroc=of.auroc, auroc_low=of.auroc_low, auroc_high=of.auroc_high)
    return measured


def _fold(table: Table) -> npt.NDArray[np.int_]:
    return np.arange(len(table.wrong)) % FOLDS


def _folded(table: Table, make: Callable[[Table], Scorer]) -> Scores:
    fold = _fold(table)
    found = np.empty(len(fold))
    for number in range(FOLDS):
        known, new = (Table({k: c[of] for k, c in table.columns.items()}) for of in (fold != number, fold == number))
        found[fold == number] = scores(make(known), new.runs)
    return found
