"""``corevital calibrate``: fits a risk profile on labelled runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from corevital_otel.cli import CommandError
from corevital_otel.cli.common import say
from corevital_otel.cli.tables import Labelled, labelled

MISSING_EXTRA = "this needs scikit-learn: pip install 'corevital[calibrate]'"


def run(file: Path, label: str, out: Path, *, labels: Path | None, bad: str | None, leave_out: Sequence[str]) -> None:
    """See :func:`corevital_otel.cli.calibrate`."""
    if not out.parent.is_dir():
        raise CommandError(f"there is no folder {out.parent}: make it, or name another --out")
    if any(table is not None and table.exists() and out.exists() and out.samefile(table) for table in (file, labels)):
        raise CommandError(f"--out {out} would replace your table: name another --out")
    found = labelled(file, label, labels=labels, bad=bad, leave_out=leave_out)
    try:
        from corevital_otel.risk.fitting import FitError, fit

        with Console(stderr=True).status("starting") as status:
            profile = fit(found.runs, found.bad, label=label, step=status.update)
    except ModuleNotFoundError:
        raise CommandError(MISSING_EXTRA) from None
    except FitError as error:
        raise CommandError(str(error)) from None
    try:
        profile.save(out)
    except OSError as error:
        raise CommandError(f"no profile can be written to {out} ({error.strerror}): name another --out") from None
    used = [term.name for term in profile.terms]
    say(f"{profile.runs} labelled runs of {file}, {profile.bad} of them bad: {found.rule}")
    tell_left_out(found)
    say(f"features used: {', '.join(used)}")
    if unused := [name for name in found.runs.columns if name not in used]:
        say(f"not used, mostly unknown or always the same: {', '.join(unused)}")
    for name in used:
        if unknown := int(np.isnan(found.runs.columns[name]).sum()):
            say(f"{name} is not known of {unknown} runs: its typical value stands there")
    if missing := [name for name in found.runs.missing if name not in used]:
        say(f"no column of: {', '.join(missing)}")
    auroc = profile.auroc or 0.0
    say(f"AUROC {auroc:.2f}, cross-validated over all runs; within groups: corevital evaluate, on other runs")
    if auroc < 0.6:
        say("these features hardly tell bad runs from good ones: most scores will be near the base rate")
    if profile.alarm is not None:
        say(f"alarm on {profile.alarm.signal}, from {len(profile.alarm.good)} good runs")
    say(f"profile written to {out}; serve with COREVITAL_PROFILE={out}")


def tell_left_out(found: Labelled) -> None:
    """Say which rows were not used."""
    for why, count in found.left_out.items():
        say(f"left out: {count} rows, {why}")
