"""What several commands share: the console, the store, and how values read."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from corevital_otel.cli import CommandError
from corevital_otel.settings import load
from corevital_otel.store.reader import StoreReader

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_STYLES: Final = {"high": "bold red", "medium": "yellow", "low": "green", "unknown": "dim"}
_PIPE_WIDTH: Final = 1000
"""Columns where nobody looks at a terminal: a row is a line, however long an id the client chose."""
_LONGEST: Final = timedelta(days=36500)


def console() -> Console:
    """Standard output; on a pipe without colours and wide enough for any table.

    Without markup and emoji codes: ids, models and answers are not ours, and may hold brackets and colons.
    """
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


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


def duration(text: str, option: str = "--since") -> timedelta:
    """A span of time such as ``90s``, ``15m``, ``1h`` or ``7d``.

    Raises:
        CommandError: not of that form, or longer than a century.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not match:
        raise CommandError(f"{option} {text!r} is no time span: use a number with s, m, h or d, such as 1h", 2)
    try:
        span = timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError:
        span = timedelta.max
    if span > _LONGEST:
        raise CommandError(f"{option} {text!r} is too long: use at most {_LONGEST.days}d", 2)
    return span


def risk_text(score: float | None, level: str) -> Text:
    """Score and level, coloured by level."""
    return Text("unknown" if score is None else f"{score:.2f} {level}", style=_STYLES.get(level, ""))


def flags_text(flags: list[str]) -> Text:
    """Flags, shortened to what a table has room for."""
    short = (flag.removesuffix("_detected").replace("repetition_", "") for flag in flags)
    return Text(", ".join(short), style="red")
