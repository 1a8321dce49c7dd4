"""Prints the benchmark's tables as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from integration.bench.markdown import head, row
from integration.bench.risk import gsm8k as answers
from integration.bench.risk.faults import Loops
from integration.bench.risk.methods import COMPARED, LABELS, RATES, SIGNALS, alarms_of, half, measures
from integration.bench.risk.table import Table
from integration.bench.risk.tasks import KINDS

from corevital_otel.calibration.evaluation import Measures


def _spread(values: Iterable[float]) -> str:
    """Mean over the seeds, and the lowest and highest."""
    some = list(values)
    return f"{statistics.mean(some):.3f} ({min(some):.3f} … {max(some):.3f})"


def _fraction(counts: tuple[int, int]) -> str:
    return f"{counts[0]} of {counts[1]}"


def scores(tables: dict[int, Table]) -> None:
    """The tasks, and how well each method separates wrong answers from right ones."""
    for seed, table in tables.items():
        sets = [table.where(set=name, part="whole") for name in ("calibration", "test")]
        wrong = (f"{kind} {sets[1].where(kind=kind).wrong.mean():.0%}" for kind in KINDS)
        sizes = f"{len(sets[0].wrong)} answers to calibrate on, {len(sets[1].wrong)} held out"
        print(f"- seed {seed}: {sizes}; wrong of these: {', '.join(wrong)}, all {sets[1].wrong.mean():.0%}")
    first = f"`calibrated`, {LABELS} labels, first half of the tokens"
    found = [{**measures(table), first: half(table)} for table in tables.values()]
    head("score", "AUROC within tasks", "ECE", "Brier skill")
    for name in found[0]:
        of = [seed[name] for seed in found]
        bare = name in SIGNALS
        row(
            name,
            _spread(one.auroc or 0.0 for one in of),
            "-" if bare else _spread(one.ece for one in of),
            "-" if bare else _spread(one.brier_skill or 0.0 for one in of),
        )


def planted(tables: dict[int, Table]) -> None:
    """How much depends on the share of planted errors: those that single signals cannot see."""
    shares = {every: [table.thinned(every) for table in tables.values()] for every in (1, 2, 0)}
    shown = (f"share {statistics.mean(t.planted.mean() for t in some):.0%}" for some in shares.values())
    head("AUROC by share of planted errors", *shown)
    found = [[measures(table, COMPARED) for table in some] for some in shares.values()]
    for name in found[0][0]:
        row(name, *(f"{statistics.mean(seed[name].auroc or 0.0 for seed in some):.3f}" for some in found))


def alarms(tables: dict[int, Table]) -> None:
    """False alarms while running, against the rate asked for."""
    found = [alarms_of(table) for table in tables.values()]
    head("alarm while running: rate asked for", "right answers alarmed on", "wrong answers alarmed on", "signal")
    for rate in RATES:
        false, true = ([seed[1][rate][i] for seed in found] for i in (0, 1))
        row(rate, _spread(false), _spread(true), ", ".join(sorted({signal for signal, _ in found})))


def loops(found: list[dict[str, Loops]], served: dict[str, tuple[int, int]]) -> None:
    """Loops found, and clean texts taken for one."""
    head("text", "texts a seed", "found while running", "found by its end", "right period", "median delay", "in vLLM")
    for kind in found[0]:
        of = [seed[kind] for seed in found]
        looping = kind != "clean"
        row(
            kind,
            of[0].n,
            _spread(one.running for one in of),
            _spread(one.ended for one in of),
            _spread(one.period_right or 0.0 for one in of) if looping else "-",
            f"{statistics.median(one.delay or 0.0 for one in of):.0f} tokens" if looping else "-",
            _fraction(served[kind]),
        )


def nan(found: dict[str, tuple[int, int]]) -> None:
    """NaN found, and requests falsely flagged."""
    head("NaN in the logits of one step", "flagged")
    for name, counts in found.items():
        row(name, _fraction(counts))


def gsm8k(table: Table, truncated: int) -> None:
    """CoreVital's own table."""
    print(
        f"\nGSM8K, an 8B model: {len(table.wrong)} answers, {table.wrong.sum()} wrong;"
        f" {truncated} truncated ones left out"
    )
    head("score", "AUROC, 95 % interval", "ECE", "Brier skill")
    for name, of in answers.measures(table).items():
        bare = name in SIGNALS
        row(name, f"{of.auroc:.3f} ({of.auroc_low:.3f} … {of.auroc_high:.3f})", *(["-"] * 2 if bare else _quality(of)))


def _quality(of: Measures) -> list[str]:
    return [f"{of.ece:.3f}", f"{of.brier_skill:.3f}"]
