"""The command line ``corevital``. One module a command; what is heavy is imported when a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

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
    """A failure with one line for the user, which names the cause and the mend. Exit 1, or 2 for wrong usage."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


Database = Annotated[Path | None, typer.Option("--db", help="The store's file. Default: COREVITAL_DB.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"corevital {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


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
        bool, typer.Option("--once", help="One reading, and the end; so it is, too, where nobody looks at a terminal.")
    ] = False,
    db: Database = None,
) -> None:
    """Watch what runs now on a server, live."""
    from corevital_otel.cli.watch import run

    run(url=url, every=every, once=once, db=db)


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Option(help="A running server, whose metrics are looked at. Default: one at port 8000.")
    ] = None,
    as_json: Json = False,
    db: Database = None,
) -> None:
    """Check engine, settings, exporter, metrics and store; one line a check."""
    from corevital_otel.cli.doctor import run

    run(url=url, as_json=as_json, db=db)


@app.command()
def demo(
    requests: Annotated[int, typer.Option(min=10, max=2000, help="How many requests to send.")] = 84,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for the server. Default: a free one.")
    ] = None,
    db: Database = None,
) -> None:
    """Serve the demo model in a real vLLM, send it traffic, and show each request with its risk."""
    from corevital_otel.cli.demo import run

    run(requests=requests, port=port, db=db)


_File = Annotated[Path, typer.Argument(help="CSV, Parquet, or a store such as runs/corevital.db.", show_default=False)]
_Label = Annotated[str, typer.Option(help="The column of labels.", show_default=False)]
_Labels = Annotated[
    Path | None, typer.Option(help="A table with the labels, joined by request_id; for a store.", show_default=False)
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
    out: Annotated[Path, typer.Option(help="Where the profile goes.", show_default=False)],
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
    """Delete the oldest requests now, as asked or else by the settings; servers do so themselves, and may go on."""
    from corevital_otel.cli.db import prune

    prune(db, older_than, max_mb)


@_db.command("backup")
def db_backup(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes; must not be there yet.")],
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
    from corevital_otel.cli.db import export

    if not otlp:
        raise CommandError("corevital db export needs to know where to: use --otlp", 2)
    export(db, dry_run=dry_run)


def main() -> None:
    """Entry point: every expected failure is one line on stderr; exit 2 for wrong usage, 1 for a failure."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except CommandError as error:
        _fail(str(error), error.code)
    except SettingsError as error:
        _fail(str(error), 1)
    except _UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        _fail(f"{error.format_message().rstrip('.')}{hint}", 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:  # `corevital spans | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a folder we may not enter, a full disk
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; mend it, or name another file with --db", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    typer.echo(f"corevital: {' '.join(message.split())}", err=True)
    sys.exit(code)
