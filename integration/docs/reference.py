"""The reference pages as Markdown: settings, command line, store, attributes, metrics. One function a page."""

from __future__ import annotations

import ast
import itertools
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from corevital_otel import conventions, settings
from corevital_otel.cli.app import app
from corevital_otel.metrics.instruments import INSTRUMENTS
from corevital_otel.store import content, schema, series, tables

NOTE = "<!-- Generated from the code by `python -m integration.docs`: change the code, then run it. -->"


def pages() -> dict[str, str]:
    """Each page's text, by the page's name."""
    made = {
        "settings": setting_page(),
        "cli": command_page(),
        "store": store_page(),
        "attributes": attribute_page(),
        "metrics": metric_page(),
    }
    return {name: f"{NOTE}\n\n{text.rstrip()}\n" for name, text in made.items()}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


# Settings


SETTINGS = """# Settings

Set them as environment variables, or in a TOML file named by `COREVITAL_CONFIG`: there in lower case and without the
prefix, such as `capture = "full"`. A variable overrides the file.

- An empty variable counts as unset, except `COREVITAL_DB`, where it means no store.
- `~` in a path is the home folder.
- A wrong value stops the start with one line that names the setting and the allowed values. `corevital doctor` lists
  every wrong value.
- An unknown `COREVITAL_*` variable is logged at the start, with the name that was probably meant.

The exporters obey the [`OTEL_*` variables](../operate/backends.md#the-otel_-variables).

"""
ARGUMENTS = """
## Arguments of one request

A request may carry these in `vllm_xargs` (SGLang: `custom_params`). A wrong value is HTTP 400, for a streamed request
too. Other keys are ignored; the first unknown one that begins with `corevital_` is logged with the name that was
probably meant.

| argument | allowed | meaning |
| --- | --- | --- |
| `corevital_capture` | one of summary, full, on_risk | the capture mode for this request |
| `corevital_return` | 0 or 1 | `1`: the answer has [the verdict](../operate/verdict.md) on it |
| `corevital_sample` | 0 or 1 | `1` keeps the request whatever the sample rate; `0`: it is not measured |
| `corevital_tags` | comma-separated, at most 16 of 128 characters | tags on the span and in the store |
| `corevital_stop_on` | some of nan, loop, alarm, or none | [ends it early](../understand/flags.md#stop-early) |
| `corevital_traceparent` | a W3C `traceparent` | the caller's span, where the request has no other parent |
"""


def setting_page() -> str:
    """From the settings' own descriptions."""
    rows = [(f"`{name}`", f"`{default}`", meaning, allowed) for name, default, allowed, meaning in settings.describe()]
    return SETTINGS + table(("setting", "default", "meaning", "allowed"), rows) + ARGUMENTS


# Command line


COMMANDS = """# Command line

Errors go to stderr as one line that names the cause and the fix. Exit status 2 is wrong usage, 1 a failure.

"""


def command_page() -> str:
    """From the commands' own help."""
    command: Any = typer.main.get_command(app)
    return COMMANDS + "\n".join(sections(command, command.make_context("corevital", [], resilient_parsing=True)))


def sections(command: Any, context: Any) -> Iterator[str]:
    """A section for a command, or for each command of a group."""
    if subcommands := getattr(command, "commands", None):
        for name, subcommand in subcommands.items():
            yield from sections(subcommand, subcommand.make_context(name, [], parent=context, resilient_parsing=True))
        return
    usage = " ".join((context.command_path, *command.collect_usage_pieces(context)))
    records = [
        record
        for parameter in command.get_params(context)
        if "--help" not in parameter.opts and (record := parameter.get_help_record(context))
    ]
    rows = [(f"`{name}`", text) for name, text in records]
    described = f"\n{table(('argument or option', 'meaning'), rows)}" if rows else ""
    yield f"## `{context.command_path}`\n\n{command.help}\n\n```text\n{usage}\n```\n{described}"


# Store


STORE = """# Store schema

The store is one SQLite file (`COREVITAL_DB`) in WAL mode. `PRAGMA user_version` is the schema's version: {version}.
[Store](../operate/store.md) describes its upkeep; [Upgrade](../operate/upgrade.md) the migrations.

The `summary` of a report is a JSON object of the span's [attributes](attributes.md),
and of `corevital.assessed.…` where the risk is of a part of the output. An attribute in SQL:
`summary ->> '$."corevital.entropy.mean"'`. A `series` is packed: {series}

So is the `content`, with `COREVITAL_DB_CONTENT=1`: {content}

"""
EXPORTED = """## Exported tables

What `corevital db export --format parquet` writes, one row for each of `reports`; CSV and JSON Lines have the same
columns.
[Take the data away](../operate/analysis.md) has examples.

{columns}
Each attribute in any row's `summary` has a column of its name: `bool`, `int64`, `double`, `string` or a list of
strings.
Values of several kinds become JSON in a string. An attribute with the name of another column gets `summary.` before it.
"""


def store_page() -> str:
    """From a store that this creates, and from the comments in its CREATE statements."""
    statements = "\n".join(
        text for name, text in vars(schema).items() if name.isupper() and isinstance(text, str) and "CREATE" in text
    )
    packed = " ".join((series.__doc__ or "").partition("Format 1: ")[2].replace("``", "`").split())
    text = " ".join((content.__doc__ or "").partition("Format 1: ")[2].replace("``", "`").split())
    parts = [STORE.format(version=schema.VERSION, series=packed, content=text)]
    with sqlite3.connect(":memory:") as connection:
        schema.create(connection)
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            body = re.search(
                rf"CREATE TABLE {name} \(\s*(?:-- (?P<about>[^\n]*))?(?P<body>.*?)\n\);", statements, re.DOTALL
            )
            assert body, name
            comments = dict(re.findall(r"^    (\w+) .*?-- (.*)$", body["body"], re.MULTILINE))
            rows = [
                (f"`{column}`", kind, "no" if required or key else "yes", comments.get(column, ""))
                for _, column, kind, required, _, key in connection.execute(f"PRAGMA table_info({name})")
            ]
            about = f"{body['about'].strip()}\n\n" if body["about"] else ""
            parts.append(f"## `{name}`\n\n{about}{table(('column', 'type', 'may be NULL', 'meaning'), rows)}\n")
        indexes = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        parts.append("## Indexes\n\n```sql\n" + "".join(f"{sql};\n" for (sql,) in indexes) + "```\n\n")
    exported = [(f"`{field.name}`", str(field.type)) for field in tables.arrow_schema({}, series=True)]
    parts.append(EXPORTED.format(columns=table(("column", "Parquet type"), exported)))
    return "".join(parts)


# Attributes


ATTRIBUTES = """# Attributes

Every name that spans and resources carry, as `corevital_otel/conventions.py` spells it. A name that ends in `*` is a
prefix. [Spans](../understand/spans.md) adds type, unit and presence of each attribute.

"""


def attribute_page() -> str:
    """From the constants in ``conventions.py`` and their docstrings."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for group, constant, text in constants():
        value = getattr(conventions, constant)
        if isinstance(value, str) and "." in value and not group.startswith("Metrics"):
            groups.setdefault(group, []).append((f"`{value}*`" if value.endswith(".") else f"`{value}`", plain(text)))
    return ATTRIBUTES + "\n".join(f"## {group}\n\n{table(('name', 'meaning'), rows)}" for group, rows in groups.items())


def constants() -> Iterator[tuple[str, str, str]]:
    """Each documented constant: the comment that heads its group, its name, its docstring."""
    source = Path(conventions.__file__).read_text()
    heads = [(number, line[2:]) for number, line in enumerate(source.splitlines(), 1) if line.startswith("# ")]
    body = ast.parse(source).body
    for statement, following in itertools.pairwise(body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            head = [text for number, text in heads if number < statement.lineno][-1]
            yield head, statement.target.id, str(following.value.value)


def plain(docstring: str) -> str:
    """reStructuredText's marks as Markdown's; a constant's name becomes its value."""
    named = re.sub(
        r":data:`(\w+)`",
        lambda found: f"`{getattr(conventions, found[1])}`",
        re.sub(r":mod:`(\w+)`", r"`\1`", docstring.replace("``", "`")),
    )
    return " ".join(named.split())


# Metrics


METRICS = """# Metrics: names, labels, buckets

As `corevital_otel/metrics/instruments.py` defines them. [Metrics](../understand/metrics.md) explains them and has
queries.

"""


def metric_page() -> str:
    """From the table of instruments."""
    rows = []
    for instrument in INSTRUMENTS.values():
        total = "_total" if instrument.kind == "counter" else ""
        labels = ", ".join(f"`{label.replace('.', '_')}`" for label in instrument.labels)
        names = f"`{instrument.name}`<br>`{instrument.prometheus}{total}`"
        rows.append((names, f"{instrument.kind}, {instrument.unit}", labels, instrument.text))
    buckets = [
        (f"`{instrument.name}`", ", ".join(f"{bound:g}" for bound in instrument.buckets))
        for instrument in INSTRUMENTS.values()
        if instrument.buckets
    ]
    return (
        METRICS
        + table(("OpenTelemetry, Prometheus", "type, unit", "labels", "meaning"), rows)
        + "\n## Buckets\n\nUpper bounds of the histograms' buckets, in the metric's unit.\n\n"
        + table(("histogram", "upper bounds"), buckets)
    )
