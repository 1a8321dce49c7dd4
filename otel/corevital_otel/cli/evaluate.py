"""``corevital evaluate``: measures a basis on labelled runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.table import Table

from corevital_otel.calibration.evaluation import Evaluation, Measures, evaluate
from corevital_otel.cli.calibrate import print_left_out
from corevital_otel.cli.common import cell, console, print_text
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.tables import Labelled, labelled
from corevital_otel.cli.terminal import print_error
from corevital_otel.risk.baseline import SIGNALS, Reference, Served, bucket
from corevital_otel.risk.calibrated import ProfileError, load
from corevital_otel.risk.prior import PriorRisk
from corevital_otel.risk.table import FloatArray, scores

_MODEL: Final = ("model", "gen_ai.request.model")
_TEMPERATURE: Final = ("temperature", "gen_ai.request.temperature")
_BASES: Final = ("prior", "baseline")


def run(
    basis: str,
    file: Path,
    label: str,
    *,
    group: str | None,
    alert_rate: float,
    labels: Path | None,
    bad: str | None,
    leave_out: Sequence[str],
    as_json: bool,
) -> None:
    """See :func:`corevital_otel.cli.app.evaluate`."""
    found = labelled(file, label, labels=labels, bad=bad, leave_out=leave_out)
    if found.bad.all() or not found.bad.any():
        kind = "bad" if found.bad.all() else "good"
        raise CommandError(f"all {len(found.bad)} labelled runs are {kind} ({found.rule}): evaluation needs both kinds")
    group = group or next((name for name in _MODEL if name in found.table), None)
    groups = np.array(found.column(group) if group else ["all"] * len(found.bad))
    values, missing = _scores(basis, found)
    known = np.isfinite(values)
    if not known.any():
        raise CommandError(f"{basis} can score none of the runs: the table has no column of {', '.join(missing)}")
    result = evaluate(values[known], found.bad[known], groups[known].tolist(), alert_rate=alert_rate)
    if result.overall.auroc is None:
        raise CommandError(f"no group of {cell(group)[:60]!r} has both bad and good runs: choose another --group")
    unscored = int((~known).sum())
    if as_json:
        facts: dict[str, Any] = {
            "basis": basis if basis in _BASES else "calibrated",
            "profile": None if basis in _BASES else basis,
            "label": label,
            "bad": found.rule,
            "grouped_by": group,
            "left_out": found.left_out,
            "unscored": unscored,
            "missing": missing,
        }
        print_text(json.dumps(facts | result.as_json(), indent=2))
        return
    print_text(f"{basis} on {file}: {found.rule}")
    print_left_out(found)
    if missing:
        print_text(f"missing columns: {', '.join(missing)}")
    if unscored:
        print_text(f"not scored: {unscored} runs")
    _print(result, group)


def _scores(basis: str, found: Labelled) -> tuple[FloatArray, list[str]]:
    """Scores of the runs, and the features that the table lacks."""
    if basis == "baseline":
        return _baseline(found)
    if basis == "prior":
        return scores(PriorRisk(1.0), found.runs), _missing(found, list(SIGNALS))
    path = Path(basis).expanduser()
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise CommandError(f"the profile {cell(basis)} is not a file: name one that `corevital calibrate` wrote")
    try:
        profile = load(path)
    except ProfileError as error:
        raise CommandError(str(error)) from None
    if text := profile.weaknesses():
        print_error(f"the profile {cell(basis)}: {text}")
    origins = product(found.engines() or ["unknown"], found.stages() or ["unknown"])
    if text := next(filter(None, (profile.differs(*origin) for origin in origins)), ""):
        print_error(text)
    return scores(profile, found.runs), _missing(found, [term.name for term in profile.terms])


def _baseline(found: Labelled) -> tuple[FloatArray, list[str]]:
    """Each run, compared with all runs of its model and temperature bucket in the table, as a server does."""
    model = next((found.column(name) for name in _MODEL if name in found.table), ["all"] * len(found.bad))
    column = next((found.table[name] for name in _TEMPERATURE if name in found.table), [None] * len(found.bad))
    keys = np.array([f"{name} {bucket(_number(value))}" for name, value in zip(model, column, strict=True)])
    values = np.full(len(keys), np.nan)
    for key in np.unique(keys):
        runs = found.runs.take(keys == key)
        values[keys == key] = scores(Served(Reference.of(runs)), runs)
    return values, _missing(found, list(SIGNALS))


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return None


def _missing(found: Labelled, wanted: Sequence[str]) -> list[str]:
    return [name for name in wanted if name not in found.runs.columns]


def _print(result: Evaluation, group: str | None) -> None:
    table = Table(box=None, pad_edge=False)
    for name in (
        cell(group or ""),
        "runs",
        "base rate",
        "AUROC",
        "95 % interval",
        "ECE",
        "Brier skill",
        "precision",
        "at",
    ):
        table.add_column(name, justify="left" if not table.columns else "right")
    for name, measures in result.groups.items():
        table.add_row(cell(name), *_row(measures))
    if len(result.groups) > 1:
        table.add_row("within groups", *_row(result.overall), style="bold")
    console().print(table)
    if len(result.groups) > 1 and result.pooled_auroc is not None:
        print_text(
            f"Pooled over the groups the AUROC would be {result.pooled_auroc:.2f}; each group's base rate alone "
            f"gives {result.base_rate_auroc or 0.5:.2f}: the pooled AUROC does not measure the score."
        )


def _row(found: Measures) -> list[str]:
    def text(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    return [
        str(found.n),
        text(found.base_rate, ".1%"),
        text(found.auroc),
        "-" if found.auroc_low is None else f"{text(found.auroc_low)} to {text(found.auroc_high)}",
        text(found.ece),
        text(found.brier_skill),
        text(found.precision, ".1%"),
        f"{found.alert_rate:.1%}",
    ]
