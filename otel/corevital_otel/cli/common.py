"""What several commands share: the console, the store, and how values read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from rich.text import Text

from corevital.text import printable
from corevital_otel.cli import CommandError
from corevital_otel.cli.terminal import complain, console, say
from corevital_otel.settings import load
from corevital_otel.store.reader import StoreReader

__all__ = [
    "argument",
    "cell",
    "console",
    "duration",
    "flags_text",
    "mention_damaged",
    "number_of",
    "risk_text",
    "say",
    "store",
    "store_path",
]

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_STYLES: Final = {"high": "bold red", "medium": "yellow", "low": "green", "unknown": "dim"}
_CELL: Final = 1000
"""Characters of a table's cell."""
_LONGEST: Final = timedelta(days=36500)


def cell(value: object) -> str:
    """A value of anyone's for a table: one printable line of a bounded length."""
    return printable(value, _CELL)


def argument(text: str) -> str:
    """An argument as text, where the locale could not decode it. What is no UTF-8 is replaced."""
    return os.fsencode(text).decode("utf-8", "replace")


def number_of(value: object) -> float | None:
    """A finite number, or None for anything else that a row may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def store_path(db: Path | None) -> Path:
    """The store's file asked for, or the one of the settings.

    Raises:
        CommandError: there is none.
    """
    path = db or load().db
    if path is None:
        raise CommandError("COREVITAL_DB is empty, so there is no store: name one with --db")
    return path


def store(db: Path | None) -> StoreReader:
    """The store asked for, or the one of the settings.

    Raises:
        CommandError: there is none.
    """
    return StoreReader(store_path(db))


def mention_damaged(reader: StoreReader) -> None:
    """Say on standard error how many rows the reader's last query left out."""
    if reader.damaged:
        complain(f"{reader.damaged} damaged rows are left out ({reader.damage}): restore a backup, or delete them")


def duration(text: str, option: str = "--since") -> timedelta:
    """A span of time such as ``90s``, ``15m``, ``1h`` or ``7d``.

    Raises:
        CommandError: not of that form, or longer than a century.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not match:
        raise CommandError(f"{option} {text[:40]!r} is no time span: use a number with s, m, h or d, such as 1h", 2)
    try:
        span = timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError:
        span = timedelta.max
    if span > _LONGEST:
        raise CommandError(f"{option} {text[:40]!r} is too long: use at most {_LONGEST.days}d", 2)
    return span


def risk_text(score: object, level: object) -> Text:
    """Score and level, coloured by level."""
    known = number_of(score)
    return Text("unknown" if known is None else f"{known:.2f} {cell(level)}", style=_STYLES.get(str(level), ""))


def flags_text(flags: Sequence[object]) -> Text:
    """Flags, shortened to what a table has room for."""
    short = (cell(flag).removesuffix("_detected").replace("repetition_", "") for flag in flags)
    return Text(", ".join(short), style="red")
