"""``corevital evaluate``: how good a basis is on labelled runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.table import Table

from corevital_otel.cli import CommandError
from corevital_otel.cli.calibrate import MISSING_EXTRA, tell_left_out
from corevital_otel.cli.common import cell, console, say
from corevital_otel.cli.tables import Labelled, labelled
from corevital_otel.risk.baseline import SIGNALS, Reference, bucket
from corevital_otel.risk.prior import PriorRisk
from corevital_otel.risk.profile import ProfileError, load
from corevital_otel.risk.table import FloatArray, scores

if TYPE_CHECKING:
    from corevital_otel.risk.evaluation import Evaluation, Measures

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
    """See :func:`corevital_otel.cli.evaluate`."""
    found = labelled(file, label, labels=labels, bad=bad, leave_out=leave_out)
    if found.bad.all() or not found.bad.any():
        kind = "bad" if found.bad.all() else "good"
        raise CommandError(
            f"all {len(found.bad)} labelled runs are {kind} ({found.rule}): there is nothing to tell apart"
        )
    group = group or next((name for name in _MODEL if name in found.table), None)
    groups = np.array(found.column(group) if group else ["all"] * len(found.bad))
    values, missing = _scores(basis, found)
    known = np.isfinite(values)
    if not known.any():
        raise CommandError(f"{basis} can score none of the runs: the table has no column of {', '.join(missing)}")
    try:
        from corevital_otel.risk.evaluation import evaluate

        result = evaluate(values[known], found.bad[known], groups[known].tolist(), alert_rate=alert_rate)
    except ModuleNotFoundError:
        raise CommandError(MISSING_EXTRA) from None
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
        say(json.dumps(facts | result.as_json(), indent=2))
        return
    say(f"{basis} on {file}: {found.rule}")
    tell_left_out(found)
    if missing:
        say(f"no column of: {', '.join(missing)}")
    if unscored:
        say(f"not scored: {unscored} runs")
    _print(result, group)


def _scores(basis: str, found: Labelled) -> tuple[FloatArray, list[str]]:
    """Scores of the runs, and the features that the table lacks."""
    if basis == "baseline":
        return _baseline(found)
    if basis == "prior":
        return scores(PriorRisk(1.0), found.runs), _missing(found, list(SIGNALS))
    path = Path(basis).expanduser()
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CommandError(f"the profile {cell(basis)} is no file: name one that `corevital calibrate` wrote")
    try:
        profile = load(path)
    except ProfileError as error:
        raise CommandError(str(error)) from None
    return scores(profile, found.runs), _missing(found, [term.name for term in profile.terms])


def _baseline(found: Labelled) -> tuple[FloatArray, list[str]]:
    """Each run against all of the table's of its model and temperature bucket, as a server compares them."""
    model = next((found.column(name) for name in _MODEL if name in found.table), ["all"] * len(found.bad))
    column = next((found.table[name] for name in _TEMPERATURE if name in found.table), [None] * len(found.bad))
    keys = np.array([f"{name} {bucket(_number(value))}" for name, value in zip(model, column, strict=True)])
    values = np.full(len(keys), np.nan)
    for key in np.unique(keys):
        runs = found.runs.take(keys == key)
        values[keys == key] = scores(Reference.of(runs), runs)
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
        say(
            f"Pooled over the groups the AUROC would be {result.pooled_auroc:.2f}; each group's base rate alone "
            f"gives {result.base_rate_auroc or 0.5:.2f}: it is no measure of the score."
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
