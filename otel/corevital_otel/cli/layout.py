"""A table where the terminal is wide enough for it; else each of its rows as lines of names and values."""

from __future__ import annotations

from itertools import zip_longest
from typing import Final

from rich.cells import cell_len
from rich.table import Table

from corevital_otel.cli.terminal import console, print_text

_GAP: Final = 2
"""Spaces between two columns."""


def print_table(table: Table) -> None:
    """Print it so that no cell is cut. Its cells are strings."""
    names = [str(column.header) for column in table.columns]
    columns = [[str(value) for value in column.cells] for column in table.columns]
    widths = [max(map(cell_len, [name, *cells])) for name, cells in zip(names, columns, strict=True)]
    if sum(widths) + _GAP * (len(widths) - 1) <= console().width:
        console().print(table)
        return
    longest = max(map(cell_len, names))
    for number, row in enumerate(zip_longest(*columns, fillvalue="")):
        if number:
            print_text("")
        for name, value in zip(names, row, strict=True):
            print_text(f"{name}{' ' * (longest - cell_len(name) + _GAP)}{value}")
