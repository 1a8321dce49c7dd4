"""``corevital demo``: the main job, on this machine, in two minutes."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from corevital_otel.cli import CommandError
from corevital_otel.cli.common import cell, console, flags_text, number_of, risk_text, say
from corevital_otel.demo.server import Server, ServerError, free_port
from corevital_otel.demo.summary import Judged, judge, selection, separation
from corevital_otel.demo.tasks import KINDS
from corevital_otel.demo.traffic import Exchange, send
from corevital_otel.settings import load
from corevital_otel.store.reader import StoredReport, StoreError, StoreReader

_STORE_WAIT_S: Final = 20.0
_SAY_EVERY_S: Final = 10.0
_TEXT_WIDTH: Final = 26
_ELSEWHERE: Final = """\
The same to a tracing backend: run it again with
  Tempo, any OTLP   OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4317
  Langfuse          OTEL_EXPORTER_OTLP_ENDPOINT=https://HOST/api/public/otel
                    OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf
                    OTEL_EXPORTER_OTLP_HEADERS=Authorization=Basic%20KEY
                    (KEY: base64 of public:secret)"""
_OTHER_COLUMNS: Final = 52
"""What the table's other columns take, so that on a terminal of 80 columns prompt and answer share the rest."""


def run(*, requests: int, port: int | None, db: Path | None) -> None:
    """See :func:`corevital_otel.cli.demo`."""
    database = db or load().db or Path("runs/corevital.db")
    screen = console()
    settings = {
        "COREVITAL_DB": str(database.resolve()),
        "COREVITAL_CAPTURE": "full",
        "COREVITAL_ENABLED": "1",
        "COREVITAL_SAMPLE_RATE": "1",
    }
    log = database.parent / "demo-server.log"
    try:
        with _stoppable(), Server(port or free_port(), log, settings) as server:
            _wait(screen, server)
            exchanges = _send(screen, server.url, requests)
            _await_reports(database, exchanges)
        rows = _rows(database, exchanges)  # again, now that the server has ended: no sequence may be there twice
    except ServerError as error:
        raise CommandError(str(error)) from None
    except (OSError, StoreError) as error:
        raise CommandError(f"{error} (the server's log: {log})") from None
    judged = judge(exchanges, {(row.request_id, row.sequence): row for row in rows})
    screen.print(_table(selection(judged), screen.width))
    _summarise(screen, judged)
    asked = len({exchange.request_id for exchange in exchanges})
    say(f"demo: {asked} requests, {len(rows)} spans, DB at {database}")
    if not len(rows) == len(judged) == len(exchanges):
        raise CommandError(
            f"{len(exchanges)} sequences were answered, and the store has {len(rows)} spans of {len(judged)} of them; "
            f"see {log}"
        )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does: by default they would end us and leave the server."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _wait(screen: Console, server: Server) -> None:
    said = 0.0

    def plain(gone: float) -> None:
        nonlocal said
        if gone - said >= _SAY_EVERY_S:
            said = gone
            screen.print(f"  still starting, {gone:.0f} s")

    screen.print("starting a real vLLM server: vllm serve MODEL --logits-processor corevital")
    if sys.stdout.isatty():
        with screen.status("starting") as status:
            took = server.wait_ready(lambda gone: status.update(f"starting, {gone:.0f} s (about a minute)"))
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


def _await_reports(database: Path, exchanges: list[Exchange]) -> None:
    """Wait until the store has all of these exchanges, or for so long that it never will."""
    deadline = time.monotonic() + _STORE_WAIT_S
    while time.monotonic() < deadline:
        with suppress(StoreError):  # nothing written yet; if that stays so, the next to read it says why
            if len(_rows(database, exchanges)) >= len(exchanges):
                return
        time.sleep(0.2)


def _rows(database: Path, exchanges: list[Exchange]) -> list[StoredReport]:
    """What the store has of these exchanges and of no other run."""
    asked = {exchange.request_id for exchange in exchanges}
    newest = StoreReader(database).list_reports(limit=4 * len(exchanges) + 1000)
    return [report for report in newest if report.request_id in asked]


def _table(chosen: list[Judged], width: int) -> Table:
    text_width = max(8, min(_TEXT_WIDTH, (width - _OTHER_COLUMNS) // 2))
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title="")
    for name in ("task", "prompt", "answer"):
        table.add_column(name, no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("tok", justify="right", no_wrap=True)
    table.add_column("bits", justify="right", no_wrap=True)
    table.add_column("risk", no_wrap=True)
    table.add_column("flags", overflow="fold")
    for item in chosen:
        mark = {True: Text("right", "green"), False: Text("wrong", "red"), None: Text("")}[item.right]
        entropy = number_of(item.report.summary.get("corevital.entropy.mean"))
        table.add_row(
            item.exchange.task.kind,
            _short(item.exchange.task.prompt, text_width),
            _short(item.exchange.text, text_width),
            mark,
            str(item.report.output_tokens),
            "" if entropy is None else f"{entropy:.2f}",
            risk_text(item.report.risk_score, item.report.risk_level),
            flags_text(item.report.flags),
        )
    return table


def _short(text: str, width: int) -> str:
    line = cell(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


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
        screen.print("No AUROC: no kind of task has both right and wrong answers.")
    else:
        screen.print(
            f"Risk told wrong from right, within kinds of task, with AUROC {found.auroc:.2f} "
            f"(95 % interval {found.low:.2f} to {found.high:.2f}, {found.wrong} wrong and {found.right} right; "
            "0.5 is chance).\n"
            "Its basis here is `prior`: a shipped default that is not calibrated on this model."
        )
    loud = max(judged, key=lambda item: len(item.report.flags) + (item.report.risk_score or 0), default=None)
    if loud is not None:
        screen.print(f"\nOne of them in full:  corevital show {loud.report.request_id}")
    screen.print(_ELSEWHERE, soft_wrap=True)
