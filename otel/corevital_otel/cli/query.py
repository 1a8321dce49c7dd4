"""``corevital query``: read-only SQL over the store."""

from __future__ import annotations

import csv
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import pydantic_core
from rich.table import Table

from corevital.text import printable_json
from corevital_otel.cli.common import argument, cell, print_text, store_path
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.layout import print_table
from corevital_otel.cli.terminal import print_error
from corevital_otel.store import cells
from corevital_otel.store.files import StoreError
from corevital_otel.store.query import Query

_IN_MEMORY: Final = 16 * 2**20
"""Bytes of a result that are held in memory; a longer one is in a temporary file until it is printed."""


def run(db: Path | None, sql: str, form: str, *, limit: int, timeout: float) -> None:
    """See :func:`corevital_otel.cli.app.query`."""
    result = Query(store_path(db), timeout).run(argument(sql))
    watch = threading.Timer(timeout + 1.0, _give_up, (timeout,))
    watch.daemon = True
    watch.start()
    try:
        names = _distinct(next(result))
        rows = _Rows(result, limit, watch.cancel)
        if form == "table":
            _print_table(names, rows)
        else:
            # whole before it is printed: a slow reader would hold the store, and an error would leave half a document
            with tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8", newline="\n") as spool:
                (_write_csv if form == "csv" else _write_json)(names, rows, spool)
                spool.seek(0)
                for line in spool:
                    print_text(line.rstrip("\r\n"))
    except StoreError as error:
        raise CommandError(str(error)) from None
    finally:
        watch.cancel()
    if rows.more:
        print_error(f"only the first {limit} rows are shown: raise --limit, or aggregate")


def _give_up(timeout: float) -> None:
    """End this process: within one call of a function, such as a long ``instr``, SQLite cannot be interrupted."""
    print_error(f"the query takes more than {timeout:g} s in one function: narrow it, or raise --timeout")
    os._exit(1)


class _Rows:
    """The first rows of a result; then ``more`` is whether there are others. The result is closed.

    Args:
        result: all rows.
        limit: how many are wanted.
        ended: called once no more is read.
    """

    def __init__(self, result: Generator[Sequence[Any], None, None], limit: int, ended: Callable[[], object]) -> None:
        self._result = result
        self._limit = limit
        self._ended = ended
        self.more = False

    def __iter__(self) -> Iterator[Sequence[Any]]:
        for number, row in enumerate(self._result):
            if number == self._limit:
                self.more = True
                break
            yield row
        self._result.close()
        self._ended()


def _distinct(names: Iterable[str]) -> list[str]:
    """Names of columns, a repeated one as SQLite names it in a subquery: ``a``, ``a:1``."""
    seen: dict[str, None] = {}
    for name in names:
        number, unique = 0, name
        while unique in seen:
            number += 1
            unique = f"{name}:{number}"
        seen[unique] = None
    return list(seen)


def _print_table(names: list[str], rows: _Rows) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(cell(name), overflow="fold")
    for row in rows:
        table.add_row(*map(_shown, row))
    print_table(table)


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return f"{value:.6g}" if isinstance(value, float) else cell("" if value is None else value)


def _write_csv(names: list[str], rows: _Rows, spool: IO[str]) -> None:
    writer = csv.writer(spool)
    writer.writerow(map(cells.text, names))
    for row in rows:
        writer.writerow(map(cells.cell, row))


def _write_json(names: list[str], rows: _Rows, spool: IO[str]) -> None:
    between = "[\n"
    for row in rows:
        values = [value.hex() if isinstance(value, bytes) else value for value in row]
        line = pydantic_core.to_json(dict(zip(names, values, strict=True)), inf_nan_mode="null").decode()
        spool.write(between + printable_json(line))
        between = ",\n"
    spool.write("[]\n" if between == "[\n" else "\n]\n")
