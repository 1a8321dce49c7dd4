"""``corevital watch``: current load from a server's ``/metrics``, and the newest requests from the store."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from corevital_otel.cli.common import cell, console, store
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.scrape import Page, ScrapeError, Window, base, scrape
from corevital_otel.cli.spans import short_ids
from corevital_otel.cli.spans import table as requests_table
from corevital_otel.metrics.instruments import OTHER
from corevital_otel.otlp.destination import shown
from corevital_otel.store.reader import StoredReport, StoreError

MODEL: Final = "gen_ai_request_model"
_MODELS: Final = 8
"""Rows of models at most: the busiest; a line counts the rest."""
_QUERIED: Final = 500
"""Models whose requests are looked up in the store."""
_REASONS: Final = 8
"""Finish reasons at most: the most frequent; the rest are counted."""
_NEWEST: Final = 20
_TOP_LINES: Final = 10
"""Lines other than rows of models and requests."""
_PIPE_LINES: Final = 60
_FLAGS: Final = {
    "nan_detected": "nan",
    "inf_detected": "inf",
    "repetition_loop_detected": "loop",
    "truncated": "truncated",
}
_WARNINGS: Final = {
    "sustained_high_entropy": "guessing",
    "distribution_collapsed": "collapsed",
    "alarm_raised": "alarm",
    "traffic_shifted": "shifted",
}


def run(*, url: str, every: float, once: bool, db: Path | None) -> None:
    """See :func:`corevital_otel.cli.app.watch`."""
    url = base(url)
    screen, window = console(), Window()
    try:
        window.add(scrape(url))
        if once or not sys.stdout.isatty():
            time.sleep(every)
            window.add(scrape(url))
            screen.print(_frame(screen, url, window, db, ""))
            return
    except ScrapeError as error:
        raise CommandError(str(error)) from None
    try:
        _watch(screen, url, window, every, db)
    except KeyboardInterrupt:  # ends the view
        return


def _watch(screen: Console, url: str, window: Window, every: float, db: Path | None) -> None:
    trouble = ""
    with Live(console=screen, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_frame(screen, url, window, db, trouble), refresh=True)
            time.sleep(every)
            try:
                window.add(scrape(url))
                trouble = ""
            except ScrapeError as error:
                trouble = f"{error}; the view is {time.monotonic() - window.now.at:.0f} s old"


def _newest(db: Path | None, models: list[str]) -> list[StoredReport]:
    """The newest requests to these models; none if the store cannot be read, as with a server on another machine."""
    try:
        return store(db).list_reports(models=[] if OTHER in models else models[:_QUERIED], limit=_NEWEST)
    except (StoreError, CommandError, ValueError):  # ValueError: settings, or an edited row
        return []


def _frame(screen: Console, url: str, window: Window, db: Path | None, trouble: str) -> RenderableType:
    head = Text(f"{shown(url)}   last {window.seconds:.0f} s   {datetime.now():%H:%M:%S}", "bold")
    parts: list[RenderableType] = [head, Text(trouble, "red"), _models(screen, window)]
    models = busiest(window.now)
    if len(models) > _MODELS:
        parts.append(Text(f"and {len(models) - _MODELS} more models", "dim"))
    parts += [Text(), *_lines(window)]
    height = screen.height if sys.stdout.isatty() else _PIPE_LINES
    room = height - _TOP_LINES - min(len(models), _MODELS + 1) - 2
    if (newest := _newest(db, models)[: max(room, 0)]) and screen.width >= 80:
        several = len({report.model for report in newest}) > 1
        parts += [Text(), requests_table(newest, short_ids(newest), with_model=several)]
    return Group(*parts)


def busiest(page: Page) -> list[str]:
    """Models, those with the most running sequences first."""
    running, ended = page.by("corevital_sequences_running", MODEL), page.by("corevital_requests_total", MODEL)
    return sorted({*running, *ended}, key=lambda model: (-running.get(model, 0), -ended.get(model, 0), model))


def _models(screen: Console, window: Window) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True, overflow="ellipsis")
    for name in ("running", "loop", "req/s", "tok/s", "ttft p95", "risk p95", "high", "bits"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in busiest(window.now)[:_MODELS]:
        only = {MODEL: model}
        ended = window.increase("corevital_requests_total", **only)
        high = window.increase("corevital_requests_total", risk_level="high", **only)
        looping = window.now.total("corevital_sequences_looping", **only)
        ttft = window.quantile("gen_ai_server_time_to_first_token_seconds", 0.95, **only)
        table.add_row(
            cell(model),
            f"{window.now.total('corevital_sequences_running', **only):.0f}",
            Text(f"{looping:.0f}", "red" if looping else ""),
            _number(window.rate("corevital_requests_total", **only)),
            _number(window.rate("corevital_tokens_total", **only)),
            _time(ttft),
            _fixed(window.quantile("corevital_risk_score", 0.95, **only)),
            Text(f"{high / ended:.0%}" if ended else "-", "bold red" if high else ""),
            _fixed(window.mean("corevital_entropy_bits", **only)),
        )
    if screen.measure(table, options=screen.options.update(max_width=sys.maxsize)).maximum > screen.width:
        table.expand, table.columns[0].ratio = True, 1  # shorten a long name, never a number
    return table


def _lines(window: Window) -> list[Text]:
    flags = _counts("flags      ", window.increases("corevital_health_flags_total", "flag"), _FLAGS)
    warnings = _counts("warnings   ", window.increases("corevital_health_warnings_total", "warning"), _WARNINGS)
    alarmed = window.now.total("corevital_sequences_alarmed")
    warnings.append(f"alarmed now {alarmed:.0f}", "red" if alarmed else "")
    ended = window.increases("corevital_requests_total", "finish_reason")
    most = sorted(ended.items(), key=lambda item: (-item[1], item[0]))[:_REASONS]
    finished = "   ".join(f"{cell(reason)} {count:.0f}" for reason, count in sorted(most)) or "none"
    if len(ended) > len(most):
        finished += f"   and {len(ended) - len(most)} more reasons"
    return [flags, warnings, Text(f"finished   {finished}"), _telemetry(window)]


def _counts(line: str, counts: dict[str, float], names: dict[str, str]) -> Text:
    text = Text(line)
    for key, name in names.items():
        count = counts.get(key, 0)
        text.append(f"{name} {count:.0f}   ", "red" if count and key != "truncated" else "")
    return text


def _telemetry(window: Window) -> Text:
    dropped = window.increase("corevital_telemetry_dropped_total")
    lost = window.increases("corevital_telemetry_dropped_total", "why")
    why = f" ({cell(max(lost, key=lambda cause: lost[cause]))})" if lost else ""
    errors = window.increase("corevital_telemetry_faults_total")
    cpu = window.rate("corevital_telemetry_cpu_time_seconds_total")
    line = Text("telemetry  ")
    line.append(f"lost {dropped:.0f}{why}   ", "red" if dropped else "")
    line.append(f"errors {errors:.0f}   ", "red" if errors else "")
    line.append(f"waiting {window.now.total('corevital_telemetry_queue'):.0f}   ")
    line.append(f"lag p95 {_time(window.quantile('corevital_telemetry_lag_seconds', 0.95))}   ")
    line.append(f"CPU {'-' if cpu is None else f'{cpu:.1%}'}")
    return line


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _fixed(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
