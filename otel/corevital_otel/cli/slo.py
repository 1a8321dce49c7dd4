"""``corevital slo``: error budgets over the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import typer
from rich.table import Table

from corevital_otel.cli.common import argument, cell, duration, print_text, store_path, warn_of_damage
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.layout import print_table
from corevital_otel.slo.budget import Budget, budgets, verdict
from corevital_otel.slo.objectives import DEFAULT, ObjectiveError, read
from corevital_otel.store.reader import EmptyStoreError, StoreError, StoreReader

_MOST_ROWS: Final = 200_000
_EXIT: Final = {"met": 0, "violated": 1, "too little traffic": 2}


def run(file: Path | None, *, since: str, model: str | None, as_json: bool, db: Path | None) -> None:
    """See :func:`corevital_otel.cli.app.slo`."""
    window = duration(since)
    path = store_path(db)
    reader = StoreReader(path)
    try:
        objectives = DEFAULT if file is None else read(file)
        reports = reader.list_reports(since=window, models=[argument(model)] if model else [], limit=_MOST_ROWS)
    except EmptyStoreError as error:
        if path.exists():  # a server has made it: no request yet
            reports = []
        else:
            raise CommandError(str(error)) from None
    except (ObjectiveError, StoreError) as error:
        raise CommandError(str(error)) from None
    warn_of_damage(reader)
    reports = [report for report in reports if report.is_sampled]
    found = budgets(objectives, reports)
    overall = verdict(found)
    if as_json:
        facts = {"verdict": overall, "since": since, "model": model, "requests": len(reports)}
        print_text(json.dumps(facts | {"objectives": [budget.as_json() for budget in found]}, indent=2))
    else:
        print_table(_table(found))
        print_text(f"{overall}: {len(reports)} requests in {since}" + (f" to {cell(model)}" if model else ""))
    if len(reports) == _MOST_ROWS and not as_json:
        print_text(f"only the newest {_MOST_ROWS} requests were read: use a shorter --since")
    if code := _EXIT[overall]:
        raise typer.Exit(code)


def _table(found: list[Budget]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("objective", "target", "requests", "bad", "allowed", "budget used", "verdict"):
        table.add_column(name, justify="left" if name in ("objective", "verdict") else "right", no_wrap=True)
    for one in found:
        table.add_row(
            one.objective,
            f"{one.target:.4g}",
            str(one.requests),
            str(one.bad),
            f"{one.allowed:.4g}",
            "-" if one.used is None else f"{one.used:.0%}",
            one.verdict if one.verdict != "too little traffic" else f"too little traffic: needs {one.least_requests}",
        )
    return table
