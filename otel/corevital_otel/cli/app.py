"""Declares the commands of ``corevital`` and turns every failure into one line.

Each command is a module here, imported when it runs: most of them import heavy libraries.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from corevital_otel import __version__
from corevital_otel.cli.errors import CommandError
from corevital_otel.errors import SettingsError

app = typer.Typer(
    name="corevital",
    help="Vital signs for LLM serving engines.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


_db = typer.Typer(help="Maintain the store.", rich_markup_mode=None)
app.add_typer(_db, name="db")


# newer versions of typer have a private copy of click: this is its UsageError in all of them
_UsageError: Any = typer.BadParameter.__mro__[1]


def _path(text: str) -> Path:
    """A path from the command line. The shell does not expand ``~`` after ``--db=``."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise typer.BadParameter(f"{text!r}: unknown user") from None


Database = Annotated[
    Path | None,
    typer.Option("--db", parser=_path, metavar="FILE", help="The store's file. Default: COREVITAL_DB."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


class DemoEngine(StrEnum):
    """What can run the demo."""

    vllm = "vllm"
    transformers = "transformers"


def _version(wanted: bool) -> None:
    if wanted:
        from corevital_otel.cli.terminal import print_text

        print_text(f"corevital {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand != "doctor" and "--help" not in sys.argv:
        _check_imports()


def _check_imports() -> None:
    """Refuse variables that make OpenTelemetry raise when a command imports it."""
    from corevital_otel.otlp.variables import tidy
    from corevital_otel.service import environment

    tidy()
    if problems := environment.at_import():
        raise SettingsError(problems[0].text)


@app.command()
def spans(
    since: Annotated[str | None, typer.Option(help="Only requests younger than this: 90s, 15m, 1h, 7d.")] = None,
    risk_above: Annotated[float | None, typer.Option(help="Only requests with a risk score above this.")] = None,
    flag: Annotated[str | None, typer.Option(help="Only requests with this flag, such as truncated.")] = None,
    model: Annotated[str | None, typer.Option(help="Only requests to this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="The most requests to list.")] = 50,
    as_json: Json = False,
    db: Database = None,
) -> None:
    """List requests from the store, newest first."""
    from corevital_otel.cli.spans import run

    run(since=since, risk_above=risk_above, flag=flag, model=model, limit=limit, as_json=as_json, db=db)


@app.command()
def show(
    request_id: Annotated[str, typer.Argument(help="The request's id or X-Request-Id, or the start of its id.")],
    as_json: Json = False,
    db: Database = None,
) -> None:
    """Show one request in full, with its per-token series."""
    from corevital_otel.cli.show import run

    run(request_id, as_json=as_json, db=db)


class _TableFormat(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT. Tables: docs/reference/store.md.")],
    form: Annotated[_TableFormat, typer.Option("--format", help="How to print the result.")] = _TableFormat.TABLE,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="The most rows to print.")] = 1000,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds that the query may take.")] = 30.0,
    db: Database = None,
) -> None:
    """Run SQL on the store, which it can only read."""
    from corevital_otel.cli.query import run

    run(db, sql, form.value, limit=limit, timeout=timeout)


@app.command()
def watch(
    url: Annotated[str, typer.Option(help="The running server.")] = "http://localhost:8000",
    every: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two readings.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one reading and exit. The default without a terminal.")
    ] = False,
    db: Database = None,
) -> None:
    """Show live what a server is running."""
    from corevital_otel.cli.watch import run

    run(url=url, every=every, once=once, db=db)


@app.command()
def ui(
    db: Database = None,
    host: Annotated[
        str, typer.Option(help="Where to listen. One that other hosts reach needs COREVITAL_HTTP_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0: any free one.")] = 8765,
    url: Annotated[str, typer.Option(help="The running server.")] = "http://localhost:8000",
    trace_url: Annotated[
        str | None,
        typer.Option(
            help="Where a tracing backend shows a trace, such as http://localhost:16686/trace/{trace_id}; {span_id} "
            "may be there too."
        ),
    ] = None,
) -> None:
    """Show the store and a running server as a web page."""
    from corevital_otel.cli.ui import run

    run(db=db, host=host, port=port, url=url, trace_url=trace_url)


@app.command()
def hub() -> None:
    """Receive what engines on several hosts send, at COREVITAL_HUB, until stopped."""
    from corevital_otel.cli.hub import run

    if status := run():
        raise typer.Exit(status)


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Option(help="A running server to read metrics from. Default: port 8000 of this machine.")
    ] = None,
    as_json: Json = False,
    db: Database = None,
) -> None:
    """Check engine, settings, exporter, metrics and store, one line per check."""
    from corevital_otel.otlp.variables import tidy
    from corevital_otel.service import environment

    problems = environment.check()
    for problem in environment.at_import():  # it is reported; without it the other checks can run
        del os.environ[problem.name]
    tidy()

    from corevital_otel.cli.doctor import run

    run(url=url, as_json=as_json, db=db, problems=problems)


@app.command()
def demo(
    requests: Annotated[int, typer.Option(min=10, max=2000, help="How many requests to send.")] = 84,
    engine: Annotated[
        DemoEngine, typer.Option(help="What runs the model: a vLLM server, or transformers without a server.")
    ] = DemoEngine.vllm,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for the server. Default: a free one.")
    ] = None,
    db: Database = None,
) -> None:
    """Run the demo model in a real engine, send it traffic, and show each request with its risk."""
    from corevital_otel.cli.demo.command import run
    from corevital_otel.service import environment

    environment.require()  # else the server would stop after a minute
    run(requests=requests, engine=engine.value, port=port, db=db)


_File = Annotated[
    Path,
    typer.Argument(
        parser=_path, metavar="FILE", help="CSV, Parquet, or a store such as runs/corevital.db.", show_default=False
    ),
]
_Label = Annotated[str, typer.Option(help="The column of labels.", show_default=False)]
_Labels = Annotated[
    Path | None,
    typer.Option(
        parser=_path,
        metavar="FILE",
        help="A table with the labels, joined by request_id. Needed for a store.",
        show_default=False,
    ),
]
_Bad = Annotated[
    str | None,
    typer.Option(
        help="The label's value of bad runs. Default: 1 or true; 0 or false where the column is called correct."
    ),
]
_LeaveOut = Annotated[
    list[str] | None,
    typer.Option(help="Leave out rows where this column is true. May be repeated.", show_default=False),
]


@app.command()
def calibrate(
    file: _File,
    label: _Label,
    out: Annotated[Path, typer.Option(parser=_path, metavar="FILE", help="The profile's file.", show_default=False)],
    group: Annotated[
        str | None, typer.Option(help="Show the figures within the groups of this column, such as the task.")
    ] = None,
    labels: _Labels = None,
    bad: _Bad = None,
    leave_out: _LeaveOut = None,
) -> None:
    """Fit a risk profile on labelled runs."""
    from corevital_otel.cli.calibrate import run

    run(file, label, out, group=group, labels=labels, bad=bad, leave_out=leave_out or ())


@app.command()
def evaluate(
    profile: Annotated[str, typer.Argument(help="A profile's file, prior or baseline.", show_default=False)],
    file: _File,
    label: _Label,
    group: Annotated[
        str | None,
        typer.Option(help="Measure within the groups of this column. Default: the model, where there is one."),
    ] = None,
    alert_rate: Annotated[float, typer.Option(min=0.001, max=1, help="Share of runs to alert on.")] = 0.1,
    labels: _Labels = None,
    bad: _Bad = None,
    leave_out: _LeaveOut = None,
    as_json: Json = False,
) -> None:
    """Measure a risk profile, or a basis without labels, on labelled runs."""
    from corevital_otel.cli.evaluate import run

    run(
        profile,
        file,
        label,
        group=group,
        alert_rate=alert_rate,
        labels=labels,
        bad=bad,
        leave_out=leave_out or (),
        as_json=as_json,
    )


@app.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="STORE, STORE@SINCE..UNTIL or STORE@ATTRIBUTE=VALUE: the reference.", show_default=False
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The same for what is judged.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Compare two stores, or two slices of one. Exit status 1 if B is worse."""
    from corevital_otel.cli.compare import run

    run(a, b, as_json=as_json)


@app.command()
def slo(
    file: Annotated[
        Path | None,
        typer.Argument(
            parser=_path,
            metavar="FILE",
            help="TOML file of objectives. Default: those of the dashboards.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[str, typer.Option(help="The window: 90s, 15m, 1h, 7d.")] = "1h",
    model: Annotated[str | None, typer.Option(help="Only requests to this model.")] = None,
    as_json: Json = False,
    db: Database = None,
) -> None:
    """Evaluate objectives over the store. Exit status 1 if one is violated, 2 if there is too little traffic to say."""
    from corevital_otel.cli.slo import run

    run(file, since=since, model=model, as_json=as_json, db=db)


@app.command()
def assets(
    out: Annotated[Path, typer.Option(parser=_path, metavar="DIR", help="The folder; it is made.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Overwrite changed files too.")] = False,
) -> None:
    """Write dashboards, rules, routes, runbooks, Collector, Compose and Kubernetes files to a folder.

    Called again after an upgrade, it replaces the files that nobody changed.
    """
    from corevital_otel.cli.assets import run

    run(out, force=force)


@_db.command("migrate")
def db_migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit status 1 if a migration is due.")
    ] = False,
    db: Database = None,
) -> None:
    """Migrate a store of an older version to this one. Stop the server first."""
    from corevital_otel.cli.db import migrate

    migrate(db, check=check)


@_db.command("prune")
def db_prune(
    older_than: Annotated[str | None, typer.Option(help="Delete what is older: 12h, 7d.")] = None,
    max_mb: Annotated[float | None, typer.Option(min=0, max=1e9, help="Delete the oldest beyond this size.")] = None,
    db: Database = None,
) -> None:
    """Delete the oldest requests now, by these options or else by the settings. Servers can keep running."""
    from corevital_otel.cli.db import prune

    prune(db, older_than, max_mb)


@_db.command("backup")
def db_backup(
    target: Annotated[
        Path, typer.Argument(parser=_path, metavar="FILE", help="The copy. The file must not exist yet.")
    ],
    db: Database = None,
) -> None:
    """Copy the store to FILE and check the copy. Servers can keep writing."""
    from corevital_otel.cli.db import backup

    backup(db, target)


@_db.command("restore")
def db_restore(
    source: Annotated[Path, typer.Argument(parser=_path, metavar="FILE", help="The backup. It stays unchanged.")],
    db: Database = None,
) -> None:
    """Verify a backup and put it in the store's place. Stop the server first. The former store is kept."""
    from corevital_otel.cli.db import restore

    restore(db, source)


class _FileFormat(StrEnum):
    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


@_db.command("export")
def db_export(
    form: Annotated[_FileFormat | None, typer.Option("--format", help="Write the requests as a table.")] = None,
    out: Annotated[
        Path | None, typer.Option(parser=_path, metavar="FILE", help="The table. The file must not exist yet.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only requests younger than this: 90s, 15m, 1h, 7d.")] = None,
    series: Annotated[bool, typer.Option("--series", help="The table has the per-token series too.")] = False,
    otlp: Annotated[
        bool, typer.Option("--otlp", help="Send undelivered spans instead, as the OTEL_* variables configure it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --otlp: only print how many are waiting.")] = False,
    db: Database = None,
) -> None:
    """Write the requests to a file as a table; or, with --otlp, send the spans that could not be delivered earlier.

    No span is sent twice.
    """
    table = form is not None or out is not None or since is not None or series
    if table == (otlp or dry_run):
        raise CommandError("db export needs a destination: use --format and --out, or use --otlp alone", 2)
    if table:
        if form is None or out is None:
            raise CommandError("db export needs a table's --format and its --out: give both", 2)
        from corevital_otel.cli.export import run

        run(db, form.value, out, since, series=series)
        return
    if not otlp:
        raise CommandError("--dry-run belongs to --otlp: add it", 2)
    from corevital_otel.cli.db import send
    from corevital_otel.service import environment

    environment.require()
    send(db, dry_run=dry_run)


def main() -> None:
    """Entry point. Every failure is one line on stderr; exit 2 for wrong usage, 1 for a failure."""
    from corevital_otel.cli import terminal

    terminal.prepare()
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except CommandError as error:
        _fail(str(error), error.code)
    except SettingsError as error:
        _fail(str(error), 1)
    except _UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        _fail(f"{error.format_message().rstrip('.')}{hint}", 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except terminal.OutputError as error:
        terminal.discard()
        if error.closed:  # `corevital spans | head`
            sys.exit(0)
        _fail(str(error), 1)
    except OSError as error:  # such as a folder without permission, or a full disk
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; fix it, or name another file with --db", 1)
    except MemoryError:
        _fail("not enough memory: ask for less, such as with --limit or a smaller table", 1)
    except Exception as error:
        if os.environ.get("COREVITAL_RAISE") == "1":
            raise
        _fail(f"unexpected {type(error).__name__}: {error}; COREVITAL_RAISE=1 shows the traceback: please report it", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    from corevital_otel.cli import terminal

    try:
        sys.stdout.flush()
    except terminal.OutputError:
        terminal.discard()
    terminal.print_error(message)
    sys.exit(code)
