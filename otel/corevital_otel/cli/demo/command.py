"""``corevital demo``: runs the demo model on this machine and shows each request with its risk."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from corevital_otel import conventions as names
from corevital_otel.cli.common import cell, console, flags_text, number_of, print_text, risk_text
from corevital_otel.cli.demo.library import generate
from corevital_otel.cli.demo.server import Server, ServerError, free_port
from corevital_otel.cli.demo.summary import Judged, judge, selection, separation
from corevital_otel.cli.demo.tasks import KINDS
from corevital_otel.cli.demo.traffic import Exchange, send
from corevital_otel.cli.errors import CommandError
from corevital_otel.settings import load
from corevital_otel.store.reader import StoredReport, StoreError, StoreReader

_LIBRARY: Final = "transformers"
_STORE_WAIT_S: Final = 20.0
_PRINT_EVERY_S: Final = 10.0
_TEXT_WIDTH: Final = 26
_ELSEWHERE: Final = """\
To send the same to a tracing backend, run it again with
  Tempo, any OTLP   OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4317
  Langfuse          OTEL_EXPORTER_OTLP_ENDPOINT=https://HOST/api/public/otel
                    OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf
                    OTEL_EXPORTER_OTLP_HEADERS=Authorization=Basic%20KEY
                    (KEY: base64 of public:secret)"""
_OTHER_COLUMNS: Final = 52
"""Width of the other columns; prompt and answer share the rest of the terminal."""


def run(*, requests: int, engine: str, port: int | None, db: Path | None) -> None:
    """See :func:`corevital_otel.cli.app.demo`."""
    if engine == _LIBRARY and port is not None:
        raise CommandError("--port: transformers has no server; leave it out", 2)
    database = db or load().db or Path("runs/corevital.db")
    screen = console()
    settings = {
        "COREVITAL_DB": str(database.resolve()),
        "COREVITAL_CAPTURE": "full",
        "COREVITAL_DB_CONTENT": "1",  # the demo's own prompts: nobody's text
        "COREVITAL_ENABLED": "1",
        "COREVITAL_SAMPLE_RATE": "1",
    }
    log = database.parent / f"demo-{'transformers' if engine == _LIBRARY else 'server'}.log"
    try:
        with _stoppable():
            if engine == _LIBRARY:
                exchanges = _generate(screen, requests, log, settings)
            else:
                exchanges = _serve(screen, requests, port, database, log, settings)
        rows = _rows(database, exchanges)  # after the engine's end: no sequence may have two rows
    except ServerError as error:
        raise CommandError(str(error)) from None
    except (OSError, StoreError) as error:
        raise CommandError(f"{error} (the engine's log: {log})") from None
    judged = judge(exchanges, {(row.request_id, row.sequence): row for row in rows})
    screen.print(_table(selection(judged), screen.width))
    _summarise(screen, judged, database)
    asked = len({exchange.request_id for exchange in exchanges})
    print_text(f"demo: {asked} requests, {len(rows)} spans, DB at {database}")
    if not len(rows) == len(judged) == len(exchanges):
        raise CommandError(
            f"the store has {len(rows)} spans for {len(judged)} of {len(exchanges)} answered sequences: see {log}"
        )


def _serve(
    screen: Console, requests: int, port: int | None, database: Path, log: Path, settings: dict[str, str]
) -> list[Exchange]:
    with Server(port or free_port(), log, settings) as server:
        _wait(screen, server)
        screen.print(f"sending {requests} requests: chat and completion, streamed and not, greedy and sampled, n=2")
        exchanges = _answered(screen, requests, lambda progress: send(server.url, requests, partial(progress, 1)))
        _await_reports(database, exchanges)
    return exchanges


def _generate(screen: Console, requests: int, log: Path, settings: dict[str, str]) -> list[Exchange]:
    screen.print("no server: model.generate(..., logits_processor=monitor.processors) in transformers")
    screen.print(f"answering {requests} prompts: in batches, greedy and sampled, num_return_sequences=2")
    return _answered(screen, requests, lambda progress: generate(requests, log, settings, progress))


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does; by default they would leave the server running."""

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
    printed_at = 0.0

    def plain(gone: float) -> None:
        nonlocal printed_at
        if gone - printed_at >= _PRINT_EVERY_S:
            printed_at = gone
            screen.print(f"  still starting, {gone:.0f} s")

    screen.print("starting a real vLLM server: vllm serve MODEL --logits-processor corevital")
    if sys.stdout.isatty():
        with screen.status("starting") as status:
            took = server.wait_ready(lambda gone: status.update(f"starting, {gone:.0f} s (about a minute)"))
    else:
        took = server.wait_ready(plain)
    screen.print(f"ready after {took:.0f} s")


def _answered(
    screen: Console, requests: int, answer: Callable[[Callable[[int], None]], list[Exchange]]
) -> list[Exchange]:
    """Run ``answer``, which calls what it is given with the number of requests just answered, under a progress bar."""
    columns = (SpinnerColumn(), TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    start = time.monotonic()
    with Progress(*columns, console=screen, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("requests", total=requests)
        exchanges = answer(lambda count: progress.advance(task, count))
    screen.print(f"answered after {time.monotonic() - start:.0f} s")
    return exchanges


def _await_reports(database: Path, exchanges: list[Exchange]) -> None:
    """Wait until the store has all of these exchanges, at most ``_STORE_WAIT_S``."""
    deadline = time.monotonic() + _STORE_WAIT_S
    while time.monotonic() < deadline:
        with suppress(StoreError):  # nothing written yet; if it stays unreadable, the next read raises
            if len(_rows(database, exchanges)) >= len(exchanges):
                return
        time.sleep(0.2)


def _rows(database: Path, exchanges: list[Exchange]) -> list[StoredReport]:
    """The store's rows of these exchanges."""
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


def _next_steps(judged: list[Judged], request_id: str | None, database: Path) -> Iterator[str]:
    """The commands that show one request, all of them in a browser, and what differs between two kinds of them.

    Args:
        judged: the demo's sequences.
        request_id: of the one to look at; None: there is none.
        database: the store they are in.
    """
    command, store = _command(), shlex.quote(str(database))
    if request_id is not None:
        yield f"\nOne request in full:  {command} show {shlex.quote(request_id)} --db {store}"
    yield f"All in a browser:     {command} ui --db {store}"
    if request_id is not None:
        yield f"Its tokens there:     http://127.0.0.1:8765/request?{urlencode({'id': request_id})}"
    kinds = sorted({str(item.report.summary.get(names.OPERATION_NAME)) for item in judged})
    slices = [f"{store}@{names.OPERATION_NAME}={kind}" for kind in kinds]
    compared = " ".join(slices) if len(slices) == 2 else "OLD.db NEW.db"
    yield f"Two slices compared:  {command} compare {compared}"


def _command() -> str:
    """``corevital``, or the path to it where a shell does not find it."""
    own = Path(sys.executable).parent / "corevital"
    return "corevital" if shutil.which("corevital") or not own.exists() else os.path.relpath(own)


def _short(text: str, width: int) -> str:
    line = cell(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def _summarise(screen: Console, judged: list[Judged], database: Path) -> None:
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
            f"Within kinds of task, risk separated wrong answers from right ones with AUROC {found.auroc:.2f} "
            f"(95 % interval {found.auroc_low:.2f} to {found.auroc_high:.2f}, {found.bad} wrong and "
            f"{found.n - found.bad} right; "
            "0.5 is chance).\n"
            "Its basis here is `prior`: a shipped default that is not calibrated on this model."
        )
    marked = [item for item in judged if item.report.flags or item.report.risk_level == "high"]  # their text is stored
    loud = max(marked or judged, key=lambda item: item.report.risk_score or 0, default=None)
    for line in _next_steps(judged, None if loud is None else loud.report.request_id, database):
        screen.print(line, soft_wrap=True, markup=False, highlight=False)
    screen.print(_ELSEWHERE, soft_wrap=True)
