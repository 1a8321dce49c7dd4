"""``corevital doctor``'s table of engines: what is installed, what was tested, how each is attached, what it hides.

To add an engine, add an entry to :data:`corevital_otel.cli.engines.ADAPTERS`, and its versions to
:data:`corevital.supported.CHECKED`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from rich.table import Table
from rich.text import Text

from corevital.attach import VARIABLE, named
from corevital.supported import CHECKED
from corevital.text import printable
from corevital_otel.cli.check import Check
from corevital_otel.cli.common import cell
from corevital_otel.cli.engines import ADAPTERS, Adapter, distribution, is_checked, span

_NOT_INSTALLED: Final = "not installed"
_SHOWN: Final = 64
"""Characters of a wrong value."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        adapter: the engine.
        status: ``ok``; ``none``: not installed; ``warn``: see the texts.
        installed, tested, attach: what the columns say.
    """

    adapter: Adapter
    status: Literal["ok", "warn", "none"]
    installed: str
    tested: str
    attach: str

    @property
    def is_installed(self) -> bool:
        """Whether the engine is in this environment."""
        return self.installed != _NOT_INSTALLED

    def check(self) -> Check:
        """The line as a check."""
        text = f"{self.installed}; tested: {self.tested}; attach: {self.attach}; not seen: {self.adapter.hidden}"
        return Check(f"engine {self.adapter.name}", self.status, text)


def rows(environ: Mapping[str, str] = os.environ) -> list[Row]:
    """The table.

    Args:
        environ: the environment's variables.
    """
    return [_row(adapter, adapter.attribute in named(environ)) for adapter in ADAPTERS]


def _row(adapter: Adapter, is_named: bool) -> Row:
    found, checked = distribution(adapter.distributions), CHECKED.get(adapter.attribute)
    tested = "none yet" if checked is None else span(checked)
    wanted = f"{VARIABLE}={adapter.attribute}"
    attach = adapter.how or (f"{wanted}: set" if is_named else f"set {wanted}")
    if found is None:
        if is_named:
            return Row(
                adapter, "warn", _NOT_INSTALLED, tested, f"{wanted} is set, and {adapter.name} is not installed here"
            )
        return Row(adapter, "none", _NOT_INSTALLED, tested, attach)
    is_known = checked is not None and is_checked(found[1], checked)
    return Row(adapter, "ok" if is_known else "warn", " ".join(found), tested, attach)


def unknown(environ: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """A check for an unknown name in ``COREVITAL_ATTACH``."""
    usable = [adapter.attribute for adapter in ADAPTERS if not adapter.how]
    if strange := sorted(named(environ).difference(usable)):
        what = printable(repr(strange[0]), _SHOWN)
        yield Check(VARIABLE, "warn", f"unknown engine {what}, ignored: use {' or '.join(usable)}")


def picture(found: list[Row], styles: Mapping[str, tuple[str, str]]) -> Table:
    """The table for the terminal.

    Args:
        found: its rows.
        styles: by status, a sign and its style.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "engine", "installed", "tested", "attach", "not seen"):
        table.add_column(name, overflow="fold")
    for row in found:
        sign, style = styles[row.status]
        texts = (row.installed, row.tested, row.attach, row.adapter.hidden)
        table.add_row(Text(sign, style), row.adapter.name, *map(cell, texts))
    return table
