"""``corevital calibrate``: fits a risk profile on labelled runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from corevital_otel.calibration.alarm_choice import Trial, trials
from corevital_otel.calibration.evaluation import Evaluation, evaluate
from corevital_otel.cli.common import cell, print_text
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.tables import Labelled, labelled
from corevital_otel.risk.alarm import RATE
from corevital_otel.risk.table import FloatArray

_RESAMPLES = 200
MISSING_EXTRA = "this needs scikit-learn: pip install 'corevital[calibrate]'"


def run(
    file: Path,
    label: str,
    out: Path,
    *,
    group: str | None,
    labels: Path | None,
    bad: str | None,
    leave_out: Sequence[str],
) -> None:
    """See :func:`corevital_otel.cli.app.calibrate`."""
    if not out.parent.is_dir():
        raise CommandError(f"there is no folder {out.parent}: make it, or name another --out")
    if any(table is not None and table.exists() and out.exists() and out.samefile(table) for table in (file, labels)):
        raise CommandError(f"--out {out} would replace your table: name another --out")
    found = labelled(file, label, labels=labels, bad=bad, leave_out=leave_out)
    groups = found.column(group) if group else None
    unseen: list[FloatArray] = []
    try:
        from corevital_otel.calibration.fitting import FitError, fit  # needs scikit-learn

        with Console(stderr=True).status("starting") as status:
            engines, stages = found.engines(), found.stages()
            profile = fit(
                found.runs,
                found.bad,
                label=label,
                step=status.update,
                unseen=unseen.append,
                engines=engines,
                stages=stages,
            )
    except ModuleNotFoundError:
        raise CommandError(MISSING_EXTRA) from None
    except FitError as error:
        raise CommandError(str(error)) from None
    try:
        profile.save(out)
    except OSError as error:
        raise CommandError(f"no profile can be written to {out} ({error.strerror}): name another --out") from None
    used = [term.name for term in profile.terms]
    print_text(f"{profile.runs} labelled runs of {file}, {profile.bad} of them bad: {found.rule}")
    print_left_out(found)
    print_text(f"fitted on {profile.origin() or 'an unknown engine and stage'}")
    print_text(f"features used: {', '.join(used)}")
    if unused := [name for name in found.runs.columns if name not in used]:
        print_text(f"not used, mostly unknown or the same in many good runs: {', '.join(unused)}")
    for name in used:
        if unknown := int(np.isnan(found.runs.columns[name]).sum()):
            print_text(f"{name}: unknown in {unknown} runs, its typical value is used there")
    if missing := [name for name in found.runs.missing if name not in used]:
        print_text(f"missing columns: {', '.join(missing)}")
    auroc = profile.auroc or 0.0
    print_text(f"AUROC {auroc:.2f}, cross-validated over all runs{'' if groups else '; within groups: --group COLUMN'}")
    if groups:
        _print_within(evaluate(unseen[0], found.bad, groups, resamples=_RESAMPLES), group)
    if auroc < 0.6:
        print_text("these features hardly separate bad runs from good ones: most scores will be near the base rate")
    _print_alarm(trials(found.runs, found.bad))
    print_text(f"profile written to {out}; serve with COREVITAL_PROFILE={out}")


def _print_alarm(tried: list[Trial]) -> None:
    """The alarm, what it would have done on these runs, and the signals that were refused."""
    best = next((one for one in tried if not one.refused), None)
    for one in tried:
        if one.refused:
            print_text(f"no alarm on {one.alarm.signal}: {one.refused}")
    if best is None:
        print_text("the profile has no alarm: no signal separates bad runs from good ones while they run")
        return
    print_text(
        f"alarm on {best.alarm.signal}, from {len(best.alarm.good)} good runs: at a rate of {best.rate:.2g} it would "
        f"have been raised in {best.good[0]} of {best.good[1]} good and {best.bad[0]} of {best.bad[1]} bad runs"
    )
    if best.rate > RATE:
        print_text(
            f"too few good runs for a rate of {RATE}: label more of them, or set "
            f"COREVITAL_ALARM_RATE={math.ceil(best.rate * 1000) / 1000:g}"
        )


def _print_within(result: Evaluation, group: str | None) -> None:
    """The cross-validated figures within groups; the pooled one does not measure skill."""
    within = result.overall
    if within.auroc is None:
        print_text(f"no group of {cell(group)} has both bad and good runs: no figures within groups")
        return
    print_text(
        f"within the {len(result.groups)} groups of {cell(group)}: AUROC {within.auroc:.2f} "
        f"({within.auroc_low:.2f} to {within.auroc_high:.2f}), ECE {within.ece:.2f}; "
        f"each group's base rate alone gives {result.base_rate_auroc or 0.5:.2f} over all runs"
    )
    for name, measures in result.groups.items():
        auroc = "-" if measures.auroc is None else f"{measures.auroc:.2f}"
        print_text(f"  {cell(name)}: {measures.n} runs, {measures.base_rate:.0%} bad, AUROC {auroc}")


def print_left_out(found: Labelled) -> None:
    """Print which rows were not used."""
    for why, count in found.left_out.items():
        print_text(f"left out: {count} rows, {why}")
