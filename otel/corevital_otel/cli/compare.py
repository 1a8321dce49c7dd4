"""``corevital compare``: whether B is worse than A."""

from __future__ import annotations

import json
from typing import Final

import typer
from rich.table import Table

from corevital_otel.cli.common import argument, cell, print_text
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.layout import print_table
from corevital_otel.cli.terminal import print_error
from corevital_otel.compare.shifts import Rate, Shift
from corevital_otel.compare.slices import MOST_ROWS, Slice, SliceError
from corevital_otel.compare.verdict import Comparison, compare

_MISSING_EXTRA: Final = "this needs scipy: pip install 'corevital[calibrate]'"
_STYLES: Final = {"worse": "red", "better": "green", "changed": "yellow"}


def run(a: str, b: str, *, as_json: bool) -> None:
    """See :func:`corevital_otel.cli.app.compare`."""
    try:
        sides = [Slice.parse(argument(text)) for text in (a, b)]
        exact = all(side.is_exact() for side in sides)
        (first, damage), (second, more) = (side.read() for side in sides)
    except SliceError as error:
        raise CommandError(str(error), 2 if error.usage else 1) from None
    for text in filter(None, (damage, more)):
        print_error(text)
    try:
        found = compare(first, second, exact=exact)
    except ModuleNotFoundError:
        raise CommandError(_MISSING_EXTRA) from None
    if as_json:
        print_text(json.dumps({"a": sides[0].text, "b": sides[1].text} | found.as_json(), indent=2))
    else:
        _print(found, sides)
    if found.verdict == "worse":
        raise typer.Exit(1)


def _print(found: Comparison, sides: list[Slice]) -> None:
    for name, side, count in zip("AB", sides, found.requests, strict=True):
        newest = ", the newest" if count == MOST_ROWS else ""
        print_text(f"{name}: {cell(side.text)}, {count} requests{newest}")
    print_text("prompts are not matched" if found.matched is None else f"{found.matched} prompts of both, matched")
    print_table(_signals(found.signals))
    print_text("")
    print_table(_flags(found.flags))
    print_text("")
    if (answers := found.fidelity) is not None:
        against = "themselves" if answers.repeated else "rounding in float32"
        print_text(
            f"temperature 0: {answers.differ} of {answers.prompts} prompts are answered differently, compared with "
            f"{against} ({answers.low:.0%} to {answers.high:.0%})"
        )
    print_text(f"verdict: {'; '.join([found.verdict, *found.reasons])}")
    if found.requests_needed is not None:
        print_text(f"a verdict needs about {found.requests_needed} requests of each")


def _signals(shifts: list[Shift]) -> Table:
    table = _table("signal", "A", "B", "shift", "interval", "in SD", "p", "change")
    for one in shifts:
        table.add_row(
            f"{one.signal} ({one.unit})" if one.unit else one.signal,
            f"{one.a:.4g}",
            f"{one.b:.4g}",
            f"{one.shift:+.3g}",
            f"{one.low:+.3g} to {one.high:+.3g}",
            f"{one.deviations:+.2f}",
            f"{one.p:.2g}",
            one.change,
            style=_STYLES.get(one.change, ""),
        )
    return table


def _flags(rates: list[Rate]) -> Table:
    table = _table("flag", "A", "interval", "B", "interval", "p", "change")
    for one in rates:
        table.add_row(
            one.flag,
            f"{one.a:.1%}",
            "{:.1%} to {:.1%}".format(*one.a_interval),
            f"{one.b:.1%}",
            "{:.1%} to {:.1%}".format(*one.b_interval),
            f"{one.p:.2g}",
            one.change,
            style=_STYLES.get(one.change, ""),
        )
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in (names[0], "change") else "right", no_wrap=True)
    return table
