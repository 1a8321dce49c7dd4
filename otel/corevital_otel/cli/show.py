"""``corevital show``: one request whole, its per-token series drawn in the terminal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import plotext  # type: ignore[import-untyped]
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from corevital_otel.cli import CommandError
from corevital_otel.cli.common import console, risk_text, store
from corevital_otel.report import Series
from corevital_otel.store.reader import StoredReport, StoreError

_CHARTS: Final = (("entropy", "entropy (bits)"), ("surprisal", "surprisal (bits)"), ("margin", "margin p1 - p2"))
_CHART_HEIGHT: Final = 9
_CHART_WIDTH: Final = 80
_MAX_CANDIDATES: Final = 5
_FLAG_TEXTS: Final = {
    "nan_detected": "NaN among the logits: the model or its weights are broken",
    "inf_detected": "+Inf among the logits: the model overflowed",
    "truncated": "truncated: the length limit ended the answer",
}


def run(request_id: str, *, as_json: bool, db: Path | None) -> None:
    """See :func:`corevital_otel.cli.show`."""
    try:
        reports = store(db).get(request_id)
    except StoreError as error:
        raise CommandError(str(error)) from None
    ids = list(dict.fromkeys(report.request_id for report in reports))
    if not ids:
        raise CommandError(f"no request {request_id!r} in the store: `corevital spans` lists what there is")
    if len(ids) > 1:
        more = ", …" if len(ids) > _MAX_CANDIDATES else ""
        raise CommandError(f"{request_id!r} is the beginning of several: {', '.join(ids[:_MAX_CANDIDATES])}{more}")
    if as_json:
        typer.echo(json.dumps([report.as_json() for report in reports], indent=2))
        return
    screen = console()
    for report in reports:
        _print(screen, report)


def _print(screen: Console, report: StoredReport) -> None:
    found = report.summary
    number = f"  sequence {report.sequence}" if report.sequence else ""
    screen.print(Text(f"{report.request_id}{number}", style="bold"))
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(report):
        facts.add_row(Text(name, style="dim"), value)
    screen.print(facts)
    for flag in report.flags:
        screen.print(Text(f"! {_flag(flag, found)}", style="red"))
    if found.get("corevital.incomplete"):
        screen.print(Text("! incomplete: not every token was observed", style="yellow"))
    screen.print()
    if report.series is not None and len(report.series):
        for name, title in _CHARTS:
            typer.echo(_chart(report.series, name, title, found.get("corevital.health.loop_onset")))
    else:
        screen.print(
            f"No per-token series: capture mode {found.get('corevital.capture')} did not keep it. "
            "To have it, serve with COREVITAL_CAPTURE=full, "
            'or send "vllm_xargs": {"corevital_capture": "full"} with the request.',
            style="dim",
        )


def _facts(report: StoredReport) -> list[tuple[str, Text | str]]:
    found = report.summary
    ttft = found.get("gen_ai.response.time_to_first_chunk")
    tokens = f"{report.prompt_tokens} in, {report.output_tokens} out"
    if ttft is not None:
        tokens += f", first after {ttft * 1000:.0f} ms"
    risk = risk_text(report.risk_score, report.risk_level)
    risk.append(f"  ({_basis(report.risk_basis)})", style="dim")
    rows: list[tuple[str, Text | str]] = [
        ("model", f"{report.model}  ({found.get('gen_ai.operation.name')}, finish: {report.finish_reason})"),
        ("ended", report.created_at_utc),
        ("trace", f"{report.trace_id} / {report.span_id}"),
        ("tokens", tokens),
        ("risk", risk),
    ]
    if factors := found.get("corevital.risk.factors"):
        rows.append(("because of", "; ".join(factors)))
    rows += [
        ("entropy", _numbers(found, "entropy", ("mean", "max", "std", "sum"), " bits")),
        ("surprisal", _numbers(found, "surprisal", ("mean", "max", "sum"), " bits")),
        ("margin", _numbers(found, "margin", ("mean", "min"))),
    ]
    return rows


def _basis(basis: str) -> str:
    return "prior: shipped default, not calibrated" if basis == "prior" else basis


def _numbers(found: dict[str, Any], what: str, names: tuple[str, ...], unit: str = "") -> str:
    known = [(name, found.get(f"corevital.{what}.{name}")) for name in names]
    return ", ".join(f"{name} {value:.3g}" for name, value in known if value is not None) + unit


def _flag(flag: str, found: dict[str, Any]) -> str:
    if flag == "repetition_loop_detected":
        onset, period = found.get("corevital.health.loop_onset"), found.get("corevital.health.loop_period")
        return f"repetition loop: from token {onset} on, every {period} tokens the same again"
    return _FLAG_TEXTS.get(flag, flag)


def _chart(series: Series, name: str, title: str, onset: int | None) -> str:
    """A series over the output index as text of at most 80 columns, without colours so that a pipe can take it."""
    points = [(i, value) for i, value in enumerate(getattr(series, name).tolist()) if math.isfinite(value)]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(_CHART_WIDTH, _CHART_HEIGHT)
    plotext.title(title)
    plotext.ylim(0, max([value for _, value in points] + [1.0]))
    plotext.xlim(0, max(len(series) - 1, 1))
    plotext.plot([i for i, _ in points], [value for _, value in points], marker="braille")
    if onset is not None:
        plotext.vline(onset)
    lines = plotext.uncolorize(plotext.build()).splitlines()
    return "\n".join(line.rstrip() for line in lines)
