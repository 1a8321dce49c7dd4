"""``corevital show``: one request in full, with its per-token series as charts in the terminal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import plotext  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table
from rich.text import Text

from corevital_otel import conventions as names
from corevital_otel.cli.common import (
    argument,
    cell,
    console,
    finish_text,
    number_of,
    print_text,
    risk_text,
    store,
    warn_of_damage,
)
from corevital_otel.cli.engines import of_attribute
from corevital_otel.cli.errors import CommandError
from corevital_otel.report import Series
from corevital_otel.risk.meaning import explanation, flag_text
from corevital_otel.risk.summary import parameters, parts
from corevital_otel.store.lookup import document, several
from corevital_otel.store.reader import StoredReport, StoreError

_CHARTS: Final = (("entropy", "entropy (bits)"), ("surprisal", "surprisal (bits)"), ("margin", "margin p1 - p2"))
_CHART_HEIGHT: Final = 9
_CHART_WIDTH: Final = 80
_PEAK: Final = "▲"
_SHOWN_ID: Final = 100
"""Characters of an id in an error's line."""


def run(request_id: str, *, as_json: bool, db: Path | None) -> None:
    """See :func:`corevital_otel.cli.app.show`."""
    request_id = argument(request_id)
    reader = store(db)
    try:
        reports = reader.get(request_id)
    except StoreError as error:
        raise CommandError(str(error)) from None
    warn_of_damage(reader)
    if not reports:
        raise CommandError(f"no request {request_id[:_SHOWN_ID]!r} in the store: `corevital spans` lists all")
    if ids := several(reports):
        raise CommandError(f"{request_id[:_SHOWN_ID]!r} is the start of several ids: {ids}")
    if as_json:
        print_text(document(reports))
        return
    screen = console()
    for report in reports:
        _print(screen, report)


def _print(screen: Console, report: StoredReport) -> None:
    found = report.summary
    number = f"  sequence {cell(report.sequence)}" if report.sequence else ""
    screen.print(Text(f"{cell(report.request_id)}{number}", style="bold"))
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(report):
        facts.add_row(Text(name, style="dim"), value)
    screen.print(facts)
    for flag in report.flags:
        screen.print(Text(f"! {flag_text(str(flag), found)}", style="yellow" if flag in names.QUIET else "red"))
    if found.get("corevital.incomplete"):
        screen.print(Text("! incomplete: not every token was observed", style="yellow"))
    screen.print()
    if report.output_tokens == 0:
        screen.print("No per-token series: the request ended before its first token.\n", style="dim")
    elif report.series is not None and len(report.series):
        width = min(screen.width, _CHART_WIDTH)
        onset = _whole(found, "corevital.health.loop_onset")
        peaks = _peaks(report.series, _whole(found, "corevital.health.high_entropy_steps") or 0)
        screen.print(_legend(peaks, onset), style="dim")
        for name, title in _CHARTS:
            print_text(_chart(report.series, name, title, width, onset, peaks if name == "entropy" else []))
    else:
        screen.print(
            f"No per-token series: capture mode {_text(found, 'corevital.capture')} did not keep it. "
            "To keep it, serve with COREVITAL_CAPTURE=full, "
            f'or send "{of_attribute(found.get(names.ENGINE)).arguments}": {{"corevital_capture": "full"}} '
            "with the request.\n",
            style="dim",
        )


def _facts(report: StoredReport) -> list[tuple[str, Text | str]]:
    found = report.summary
    ttft = number_of(found.get("gen_ai.response.time_to_first_chunk"))
    tokens = f"{cell(report.prompt_tokens)} in, {cell(report.output_tokens)} out"
    if ttft is not None:
        tokens += f", first after {ttft * 1000:.0f} ms"
    seen = ("corevital.engine", "corevital.engine.version", "corevital.runner")
    engine = " ".join(_text(found, name) for name in seen if name in found)
    logits = f"{_text(found, 'corevital.logits.stage')} logits"
    finish = f"{_text(found, 'gen_ai.operation.name')}, finish: {finish_text(report)}"
    return [
        ("model", f"{cell(report.model)}  ({finish})"),
        ("ended", cell(report.created_at_utc)),
        ("trace", f"{cell(report.trace_id)} / {cell(report.span_id)}"),
        ("tokens", tokens),
        ("request", parameters(found)),
        ("measured", f"{engine}, {logits}, capture {_text(found, 'corevital.capture')}"),
        ("risk", risk_text(report.risk_score, report.risk_level)),
        ("meaning", explanation(number_of(report.risk_score), cell(report.risk_basis), _factors(found))),
        ("entropy", _numbers(found, "entropy", ("mean", "max", "std", "sum"), " bits")),
        ("surprisal", _numbers(found, "surprisal", ("mean", "max", "sum"), " bits")),
        ("margin", _numbers(found, "margin", ("mean", "min"))),
        ("unsure", f"{_whole(found, 'corevital.health.high_entropy_steps') or 0} high-entropy steps"),
        *parts(found),
    ]


def _text(found: dict[str, Any], name: str) -> str:
    """A value of the summary as printable text; the row may have been edited."""
    return cell(found.get(name, "unknown"))


def _whole(found: dict[str, Any], name: str) -> int | None:
    known = number_of(found.get(name))
    return None if known is None else int(known)


def _factors(found: dict[str, Any]) -> list[str]:
    factors = found.get(names.RISK_FACTORS)
    return [cell(factor) for factor in factors] if isinstance(factors, list) else []


def _numbers(found: dict[str, Any], what: str, names: tuple[str, ...], unit: str = "") -> str:
    known = [(name, number_of(found.get(f"corevital.{what}.{name}"))) for name in names]
    return ", ".join(f"{name} {value:.3g}" for name, value in known if value is not None) + unit


def _peaks(series: Series, count: int) -> list[int]:
    """Indices of the high-entropy steps: the ``count`` highest entropies, since the threshold is not stored."""
    known = [(value, i) for i, value in enumerate(series.entropy.tolist()) if math.isfinite(value)]
    return sorted(i for _, i in sorted(known, reverse=True)[: max(count, 0)])


def _legend(peaks: list[int], onset: int | None) -> str:
    parts = ["by output token"]
    if peaks:
        parts.append(f"{_PEAK} high-entropy step")
    if onset is not None:
        parts.append(f"│ the loop starts, at token {onset}")
    return "   ".join(parts)


def _chart(series: Series, name: str, title: str, width: int, onset: int | None, peaks: list[int]) -> str:
    """A chart of a series over the output index, as text without colours."""
    values = getattr(series, name).tolist()
    points = [(i, value) for i, value in enumerate(values) if math.isfinite(value)]
    if not points:
        return f"{title}: no known value"
    top = max(1, math.ceil(max(value for _, value in points)))
    last = len(values) - 1
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)  # else it is cut to the size of a terminal that may not exist
    plotext.plot_size(width, _CHART_HEIGHT)
    plotext.title(title)
    plotext.ylim(0, top)
    plotext.yticks([0, top / 2, top], [f"{tick:4g}" for tick in (0, top / 2, top)])  # one margin for all charts
    plotext.xlim(0, max(last, 1))
    ticks = sorted({round(last * part / 4) for part in range(5)})
    plotext.xticks(ticks, [str(tick) for tick in ticks])
    plotext.plot([i for i, _ in points], [value for _, value in points], marker="braille")
    if peaks:
        plotext.scatter(peaks, [values[i] for i in peaks], marker=_PEAK)
    if onset is not None and 0 <= onset <= last:
        plotext.vline(onset)
    lines = plotext.uncolorize(plotext.build()).splitlines()
    return "\n".join(line.rstrip() for line in lines)
