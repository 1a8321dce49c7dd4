"""``corevital spans``: requests from the store, newest first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from corevital_otel import conventions as names
from corevital_otel.cli import CommandError
from corevital_otel.cli.common import (
    argument,
    cell,
    console,
    duration,
    flags_text,
    mention_damaged,
    risk_text,
    say,
    store_path,
)
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
    """See :func:`corevital_otel.cli.spans`."""
    if flag is not None and flag not in FLAGS:
        raise CommandError(f"--flag {flag[:40]!r}: unknown flag: use one of {', '.join(FLAGS)}", 2)
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
    mention_damaged(reader)
    if as_json:
        rows = [{key: value for key, value in report.as_json().items() if key != "series"} for report in reports]
        say(json.dumps(rows, indent=2))
    elif reports:
        _print(console(), reports)
    elif (since, risk_above, flag, model) == (None,) * 4:
        say(f"the store {path} holds no requests yet: vllm serve MODEL --logits-processor corevital")
    else:
        say("no requests match")


def _print(screen: Console, reports: list[StoredReport]) -> None:
    """The table whole where there is room for it, and what identifies a row where there is not."""
    whole = table(reports)
    if screen.measure(whole, options=screen.options.update(max_width=sys.maxsize)).maximum <= screen.width:
        screen.print(whole)
        return
    models = list(dict.fromkeys(report.model for report in reports))
    if len(models) == 1:
        screen.print(f"model {cell(models[0])}", overflow="ellipsis", no_wrap=True)
    screen.print(table(reports, short_ids(reports), with_model=len(models) > 1))


def table(reports: list[StoredReport], ids: dict[str, str] | None = None, *, with_model: bool = True) -> Table:
    """The list as a table.

    Args:
        reports: its rows.
        ids: what to show for a request's id, where not the id itself.
        with_model: whether there is a column for the model.
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
            cell(report.finish_reason),
            risk_text(report.risk_score, report.risk_level),
            flags_text(report.flags),
        )
    return result


def short_ids(reports: list[StoredReport]) -> dict[str, str]:
    """For each request's id its shortest beginning that no other listed id has, for `corevital show` to take.

    At least 8 characters behind the prefix that says which endpoint it came by, so that it will do for the whole store.
    """
    ids = sorted({report.request_id for report in reports})
    short = {}
    for before, one, after in zip(["", *ids], ids, [*ids[1:], ""], strict=False):  # in order, the most alike are beside
        prefix = one.find("-") + 1
        short[one] = one[: max(prefix + _ID_LENGTH, _shared(one, before) + 1, _shared(one, after) + 1)]
    return short


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
