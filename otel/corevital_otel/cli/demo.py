"""``corevital demo``: the main job, on this machine, in two minutes."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from corevital_otel.cli import CommandError
from corevital_otel.cli.common import console, flags_text, risk_text
from corevital_otel.demo.server import Server, ServerError, free_port
from corevital_otel.demo.summary import Judged, judge, selection, separation
from corevital_otel.demo.tasks import KINDS
from corevital_otel.demo.traffic import Exchange, send
from corevital_otel.settings import load
from corevital_otel.store.reader import StoredReport, StoreError, StoreReader

_STORE_WAIT_S: Final = 20.0
_SAY_EVERY_S: Final = 10.0
_TEXT_WIDTH: Final = 26


def run(*, requests: int, port: int | None, db: Path | None) -> None:
    """See :func:`corevital_otel.cli.demo`."""
    database = db or load().db or Path("runs/corevital.db")
    screen = console()
    settings = {"COREVITAL_DB": str(database.resolve()), "COREVITAL_CAPTURE": "full", "COREVITAL_ENABLED": "1"}
    try:
        with Server(port or free_port(), database.parent / "demo-server.log", settings) as server:
            _wait(screen, server)
            exchanges = _send(screen, server.url, requests)
            reports = _collect(database, exchanges)
    except ServerError as error:
        raise CommandError(str(error)) from None
    except (OSError, StoreError) as error:
        raise CommandError(f"{error} (the server's log: {database.parent / 'demo-server.log'})") from None
    judged = judge(exchanges, reports)
    screen.print(_table(selection(judged)))
    _summarise(screen, judged)
    asked = len({exchange.request_id for exchange in exchanges})
    typer.echo(f"demo: {asked} requests, {len(reports)} spans, DB at {database}")
    if len(reports) != len(exchanges):
        raise CommandError(f"{len(exchanges)} sequences were answered and {len(reports)} reported")


def _wait(screen: Console, server: Server) -> None:
    said = 0.0

    def plain(gone: float) -> None:
        nonlocal said
        if gone - said >= _SAY_EVERY_S:
            said = gone
            screen.print(f"  still starting, {gone:.0f} s")

    screen.print("starting a real vLLM server: vllm serve MODEL --logits-processor corevital")
    if sys.stdout.isatty():
        with screen.status("starting (about a minute)"):
            took = server.wait_ready(lambda _gone: None)
    else:
        took = server.wait_ready(plain)
    screen.print(f"ready after {took:.0f} s")


def _send(screen: Console, url: str, requests: int) -> list[Exchange]:
    screen.print(f"sending {requests} requests: chat and completion, streamed and not, greedy and sampled, n=2")
    columns = (SpinnerColumn(), TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    start = time.monotonic()
    with Progress(*columns, console=screen, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("requests", total=requests)
        exchanges = send(url, requests, lambda: progress.advance(task))
    screen.print(f"answered after {time.monotonic() - start:.0f} s")
    return exchanges


def _collect(database: Path, exchanges: list[Exchange]) -> dict[tuple[str, int], StoredReport]:
    """The reports of these exchanges, as soon as the store has all of them, or those it has by then."""
    wanted = {(exchange.request_id, exchange.sequence) for exchange in exchanges}
    reader = StoreReader(database)
    deadline = time.monotonic() + _STORE_WAIT_S
    while True:
        found = {}
        try:
            for report in reader.list_reports(limit=4 * len(wanted) + 1000):
                if (report.request_id, report.sequence) in wanted:
                    found[report.request_id, report.sequence] = report
        except StoreError:
            if time.monotonic() > deadline:
                raise
        if len(found) == len(wanted) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _table(chosen: list[Judged]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title="")
    for name in ("task", "prompt", "answer"):
        table.add_column(name, no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("tok", justify="right", no_wrap=True)
    table.add_column("bits", justify="right", no_wrap=True)
    table.add_column("risk", no_wrap=True)
    table.add_column("flags", no_wrap=True)
    for item in chosen:
        mark = {True: Text("right", "green"), False: Text("wrong", "red"), None: Text("")}[item.right]
        entropy = item.report.summary.get("corevital.entropy.mean")
        table.add_row(
            item.exchange.task.kind,
            _short(item.exchange.task.prompt),
            _short(item.exchange.text),
            mark,
            str(item.report.output_tokens),
            "" if entropy is None else f"{entropy:.2f}",
            risk_text(item.report.risk_score, item.report.risk_level),
            flags_text(item.report.flags),
        )
    return table


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_WIDTH else line[: _TEXT_WIDTH - 1] + "…"


def _summarise(screen: Console, judged: list[Judged]) -> None:
    screen.print()
    for kind in KINDS:
        of_kind = [item for item in judged if item.exchange.task.kind == kind]
        checked = [item for item in of_kind if item.right is not None]
        right = (
            f"{sum(bool(item.right) for item in checked)} of {len(checked)} right" if checked else "nothing to check"
        )
        flags = Counter(flag for item in of_kind for flag in item.report.flags)
        raised = ", ".join(f"{flag} {count}" for flag, count in sorted(flags.items())) or "no flags"
        screen.print(f"{kind:6} {right:18} {raised}")
    found = separation(judged)
    screen.print()
    if found is None:
        screen.print("How well risk told right from wrong cannot be said: no kind of task has both.")
    else:
        screen.print(
            f"Risk told wrong from right, within kinds of task, with AUROC {found.auroc:.2f} "
            f"(95 % interval {found.low:.2f} to {found.high:.2f}, {found.pairs} pairs; 0.5 is chance).\n"
            "Its basis here is `prior`: a shipped default that is not calibrated on this model."
        )
    loud = max(judged, key=lambda item: len(item.report.flags) + (item.report.risk_score or 0), default=None)
    if loud is not None:
        screen.print(f"\nOne of them in full:  corevital show {loud.report.request_id}")
    screen.print(
        "The same to Langfuse, Grafana Tempo or any OTLP backend: set OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4317 "
        "and run it again."
    )
