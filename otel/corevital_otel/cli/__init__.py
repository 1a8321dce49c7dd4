"""The command line ``corevital``. One module a command; what is heavy is imported when a command needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from corevital_otel import __version__
from corevital_otel.errors import SettingsError

app = typer.Typer(
    name="corevital",
    help="Vital signs for LLM serving engines.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


_db = typer.Typer(help="The store's upkeep.", rich_markup_mode=None)
app.add_typer(_db, name="db")


# typer's own click is a private copy in newer versions: this is its UsageError wherever it lives
_UsageError: Any = typer.BadParameter.__mro__[1]


class CommandError(Exception):
    """A failure with one line for the user, which names the cause and the fix. Exit 1, or 2 for wrong usage."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def _path(text: str) -> Path:
    """A path that a user typed; the shell does not expand ``~`` behind ``--db=``."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise typer.BadParameter(f"{text!r}: there is no such user") from None


Database = Annotated[
    Path | None,
    typer.Option("--db", parser=_path, metavar="FILE", help="The store's file. Default: COREVITAL_DB."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def _version(wanted: bool) -> None:
    if wanted:
        from corevital_otel.cli.terminal import say

        say(f"corevital {__version__}")
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
    """Refuse variables that OpenTelemetry would answer with a traceback as soon as a command imports it."""
    from corevital_otel import environment

    environment.tidy()
    if problems := environment.at_import():
        raise SettingsError(problems[0].text)


@app.command()
def spans(
    since: Annotated[str | None, typer.Option(help="Only younger than this: 90s, 15m, 1h, 7d.")] = None,
    risk_above: Annotated[float | None, typer.Option(help="Only with a risk score above this.")] = None,
    flag: Annotated[str | None, typer.Option(help="Only with this flag, such as truncated.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many.")] = 50,
    as_json: Json = False,
    db: Database = None,
) -> None:
    """List requests from the store, newest first."""
    from corevital_otel.cli.spans import run

    run(since=since, risk_above=risk_above, flag=flag, model=model, limit=limit, as_json=as_json, db=db)


@app.command()
def show(
    request_id: Annotated[str, typer.Argument(help="A request's id or X-Request-Id, or the beginning of its id.")],
    as_json: Json = False,
    db: Database = None,
) -> None:
    """Show one request whole, with its per-token series."""
    from corevital_otel.cli.show import run

    run(request_id, as_json=as_json, db=db)


@app.command()
def watch(
    url: Annotated[str, typer.Option(help="The running server.")] = "http://localhost:8000",
    every: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two readings.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="One reading, then exit; also the default where there is no terminal.")
    ] = False,
    db: Database = None,
) -> None:
    """Watch what runs now on a server, live."""
    from corevital_otel.cli.watch import run

    run(url=url, every=every, once=once, db=db)


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Option(help="A running server, whose metrics are read. Default: one at port 8000.")
    ] = None,
    as_json: Json = False,
    db: Database = None,
) -> None:
    """Check engine, settings, exporter, metrics and store; one line a check."""
    from corevital_otel import environment

    problems = environment.check()
    for problem in environment.at_import():  # it is reported, and must not end the other checks
        del os.environ[problem.name]
    environment.tidy()

    from corevital_otel.cli.doctor import run

    run(url=url, as_json=as_json, db=db, problems=problems)


@app.command()
def demo(
    requests: Annotated[int, typer.Option(min=10, max=2000, help="How many requests to send.")] = 84,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for the server. Default: a free one.")
    ] = None,
    db: Database = None,
) -> None:
    """Serve the demo model in a real vLLM, send it traffic, and show each request with its risk."""
    from corevital_otel import environment
    from corevital_otel.cli.demo import run

    environment.require()  # the server would stop, after a minute
    run(requests=requests, port=port, db=db)


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
        help="A table with the labels, joined by request_id; for a store.",
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
    out: Annotated[
        Path, typer.Option(parser=_path, metavar="FILE", help="Where the profile goes.", show_default=False)
    ],
    labels: _Labels = None,
    bad: _Bad = None,
    leave_out: _LeaveOut = None,
) -> None:
    """Fit a risk profile on labelled runs."""
    from corevital_otel.cli.calibrate import run

    run(file, label, out, labels=labels, bad=bad, leave_out=leave_out or ())


@app.command()
def evaluate(
    profile: Annotated[str, typer.Argument(help="A profile's file, or prior, or baseline.", show_default=False)],
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


@_db.command("migrate")
def db_migrate(db: Database = None) -> None:
    """Bring a store of an older version up to this one. Stop the server before."""
    from corevital_otel.cli.db import migrate

    migrate(db)


@_db.command("prune")
def db_prune(
    older_than: Annotated[str | None, typer.Option(help="Delete what is older: 12h, 7d.")] = None,
    max_mb: Annotated[float | None, typer.Option(min=0, max=1e9, help="Delete the oldest beyond this size.")] = None,
    db: Database = None,
) -> None:
    """Delete the oldest requests now, as asked or else by the settings. Servers may go on, and do so themselves."""
    from corevital_otel.cli.db import prune

    prune(db, older_than, max_mb)


@_db.command("backup")
def db_backup(
    target: Annotated[
        Path, typer.Argument(parser=_path, metavar="FILE", help="Where the copy goes; must not be there yet.")
    ],
    db: Database = None,
) -> None:
    """Copy the store into FILE, whole and checked, while servers go on writing."""
    from corevital_otel.cli.db import backup

    backup(db, target)


@_db.command("export")
def db_export(
    otlp: Annotated[
        bool, typer.Option("--otlp", help="Send what was not delivered, as the OTEL_* variables say.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many wait.")] = False,
    db: Database = None,
) -> None:
    """Send the spans that could not be delivered when they were made; none is sent twice."""
    from corevital_otel import environment
    from corevital_otel.cli.db import export

    if not otlp:
        raise CommandError("corevital db export needs to know where to: use --otlp", 2)
    environment.require()
    export(db, dry_run=dry_run)


def main() -> None:
    """Entry point: every expected failure is one line on stderr; exit 2 for wrong usage, 1 for a failure."""
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
        terminal.abandon()
        if error.closed:  # `corevital spans | head`
            sys.exit(0)
        _fail(str(error), 1)
    except OSError as error:  # a folder that we may not enter, a full disk
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
        terminal.abandon()
    terminal.complain(message)
    sys.exit(code)
