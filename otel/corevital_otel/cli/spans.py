"""``corevital spans``: requests from the store, newest first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import typer
from rich.table import Table

from corevital_otel.cli import CommandError
from corevital_otel.cli.common import console, duration, flags_text, risk_text, store
from corevital_otel.store.reader import StoredReport, StoreError

FLAGS: Final = ("nan_detected", "inf_detected", "repetition_loop_detected", "truncated")


def run(
    *,
    since: str | None,
    risk_above: float | None,
    flag: str | None,
    model: str | None,
    limit: int,
    as_json: bool,
    db: Path | None,
) -> None:
    """See :func:`corevital_otel.cli.spans`."""
    if flag is not None and flag not in FLAGS:
        raise CommandError(f"--flag {flag!r} is no flag: use one of {', '.join(FLAGS)}", 2)
    if risk_above is not None and not 0 <= risk_above <= 1:
        raise CommandError(f"--risk-above {risk_above} is out of range: use a number from 0 to 1", 2)
    try:
        reports = store(db).list_reports(
            since=duration(since) if since else None, risk_above=risk_above, flag=flag, model=model, limit=limit
        )
    except StoreError as error:
        raise CommandError(str(error)) from None
    if as_json:
        rows = [{key: value for key, value in report.as_json().items() if key != "series"} for report in reports]
        typer.echo(json.dumps(rows, indent=2))
    elif reports:
        console().print(table(reports))
    else:
        typer.echo("no requests match")


def table(reports: list[StoredReport]) -> Table:
    """The list as a table that fits 80 columns."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    result.add_column("time (UTC)", no_wrap=True)
    result.add_column("request", overflow="fold", min_width=20)
    result.add_column("tokens", justify="right", no_wrap=True)
    result.add_column("finish", no_wrap=True)
    result.add_column("risk", no_wrap=True)
    result.add_column("flags", overflow="fold")
    for report in reports:
        number = f" #{report.sequence}" if report.sequence else ""
        result.add_row(
            report.created_at_utc[5:19].replace("T", " "),
            report.request_id + number,
            str(report.output_tokens),
            report.finish_reason,
            risk_text(report.risk_score, report.risk_level),
            flags_text(report.flags),
        )
    return result
