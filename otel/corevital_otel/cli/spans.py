"""``corevital spans``: requests from the store, newest first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from corevital_otel import conventions as names
from corevital_otel.cli.common import (
    argument,
    cell,
    console,
    duration,
    finish_text,
    flags_text,
    print_text,
    risk_text,
    short_flag,
    store_path,
    warn_of_damage,
)
from corevital_otel.cli.engines import installed
from corevital_otel.cli.errors import CommandError
from corevital_otel.store.reader import StoredReport, StoreError, StoreReader

_ID_LENGTH: Final = 8
FLAGS: Final = (*names.FLAGS, *names.CONDITIONS)


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
    """See :func:`corevital_otel.cli.app.spans`."""
    if flag is not None:
        asked, flag = flag, next((name for name in FLAGS if flag in (name, short_flag(name))), None)
        if flag is None:
            raise CommandError(
                f"--flag {asked[:40]!r}: unknown flag: use one of {', '.join(FLAGS)}, or as the table prints it", 2
            )
    if risk_above is not None and not 0 <= risk_above <= 1:
        raise CommandError(f"--risk-above {risk_above} is out of range: use a number from 0 to 1", 2)
    younger = None if since is None else duration(since)
    path = store_path(db)
    reader = StoreReader(path)
    try:
        reports = reader.list_reports(
            since=younger, risk_above=risk_above, flag=flag, models=[argument(model)] if model else [], limit=limit
        )
    except StoreError as error:
        raise CommandError(str(error)) from None
    warn_of_damage(reader)
    if as_json:
        rows = [{key: value for key, value in report.as_json().items() if key != "series"} for report in reports]
        print_text(json.dumps(rows, indent=2))
    elif reports:
        _print(console(), reports)
    elif (since, risk_above, flag, model) == (None,) * 4:
        print_text(f"the store {path} holds no requests yet: {installed().serve}")
    else:
        print_text("no requests match")


def _print(screen: Console, reports: list[StoredReport]) -> None:
    """The whole table if it fits the terminal, else with shortened ids."""
    whole = table(reports)
    if screen.measure(whole, options=screen.options.update(max_width=sys.maxsize)).maximum <= screen.width:
        screen.print(whole)
        return
    models = list(dict.fromkeys(report.model for report in reports))
    if len(models) == 1:
        screen.print(f"model {cell(models[0])}", overflow="ellipsis", no_wrap=True)
    screen.print(table(reports, short_ids(reports), with_model=len(models) > 1))


def table(reports: list[StoredReport], ids: dict[str, str] | None = None, *, with_model: bool = True) -> Table:
    """Requests as a table.

    Args:
        reports: the rows.
        ids: the text to show for a request id; default: the id.
        with_model: whether the table has a column for the model.
    """
    result = Table(box=None, pad_edge=False, header_style="bold")
    result.add_column("time (UTC)", no_wrap=True)
    result.add_column("request", overflow="fold")
    if with_model:
        result.add_column("model", overflow="ellipsis", no_wrap=ids is not None)
    result.add_column("tokens", justify="right", no_wrap=True)
    result.add_column("finish", no_wrap=True)
    result.add_column("risk", no_wrap=True)
    result.add_column("flags", overflow="fold")
    for report in reports:
        number = f" #{cell(report.sequence)}" if report.sequence else ""
        shown = (ids or {}).get(report.request_id, report.request_id)
        model = [cell(report.model)] if with_model else []
        result.add_row(
            cell(report.created_at_utc)[5:19].replace("T", " "),
            cell(shown) + number,
            *model,
            cell(report.output_tokens),
            finish_text(report),
            risk_text(report.risk_score, report.risk_level),
            flags_text(report.flags),
        )
    return result


def short_ids(reports: list[StoredReport]) -> dict[str, str]:
    """The shortest unique prefix of each listed request id, for `corevital show`.

    It has at least 8 characters after the endpoint's prefix (``chatcmpl-``), to be unique in the whole store too.
    """
    ids = sorted({report.request_id for report in reports})
    short = {}
    for before, one, after in zip(["", *ids], ids, [*ids[1:], ""], strict=False):  # sorted: similar ids are neighbours
        prefix = one.find("-") + 1
        short[one] = one[: max(prefix + _ID_LENGTH, _shared(one, before) + 1, _shared(one, after) + 1)]
    return short


def _shared(one: str, other: str) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
