"""What several commands share: the console, the store, and the format of values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from rich.text import Text

from corevital.text import printable
from corevital_otel import durations
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.terminal import console, print_error, print_text
from corevital_otel.risk.meaning import short_flag, stopped
from corevital_otel.risk.summary import is_number
from corevital_otel.settings import load
from corevital_otel.store.reader import StoredReport, StoreReader

__all__ = [
    "argument",
    "cell",
    "console",
    "duration",
    "finish_text",
    "flags_text",
    "number_of",
    "print_text",
    "risk_text",
    "short_flag",
    "store",
    "store_path",
    "warn_of_damage",
]

_STYLES: Final = {"high": "bold red", "medium": "yellow", "low": "green", "unknown": "dim"}
_CELL: Final = 1000
"""Characters of a table's cell."""


def cell(value: object) -> str:
    """An untrusted value for a table: one printable line of bounded length."""
    return printable(value, _CELL)


def finish_text(report: StoredReport) -> str:
    """How it ended; with ``corevital:loop`` and the like where corevital ended it."""
    reason = stopped(report.summary)
    return f"{cell(report.finish_reason)} ({reason})" if reason else cell(report.finish_reason)


def argument(text: str) -> str:
    """An argument that the locale could not decode, as text. Bytes that are not UTF-8 are replaced."""
    return os.fsencode(text).decode("utf-8", "replace")


def number_of(value: object) -> float | None:
    """A finite number; None for any other value of a row."""
    return float(value) if is_number(value) else None


def store_path(db: Path | None) -> Path:
    """The path of the store: ``--db``, or else ``COREVITAL_DB``.

    Raises:
        CommandError: neither is set.
    """
    path = db or load().db
    if path is None:
        raise CommandError("COREVITAL_DB is empty, so there is no store: name one with --db")
    return path


def store(db: Path | None) -> StoreReader:
    """The store at :func:`store_path`.

    Raises:
        CommandError: no path is set.
    """
    return StoreReader(store_path(db))


def warn_of_damage(reader: StoreReader) -> None:
    """Print on standard error how many damaged rows the reader's last query skipped."""
    if reader.damaged:
        print_error(f"{reader.damaged} damaged rows skipped ({reader.damage}): restore a backup, or delete them")


def duration(text: str, option: str = "--since") -> timedelta:
    """A span of time such as ``90s``, ``15m``, ``1h`` or ``7d``.

    Raises:
        CommandError: another form, or longer than a century.
    """
    span = durations.parse(text)
    if span is None:
        raise CommandError(f"{option} {text[:40]!r} is not a time span: use a number with s, m, h or d, such as 1h", 2)
    if span > durations.LONGEST:
        raise CommandError(f"{option} {text[:40]!r} is too long: use at most {durations.LONGEST.days}d", 2)
    return span


def risk_text(score: object, level: object) -> Text:
    """Score and level, coloured by level."""
    known = number_of(score)
    return Text("unknown" if known is None else f"{known:.2f} {cell(level)}", style=_STYLES.get(str(level), ""))


def flags_text(flags: Sequence[object]) -> Text:
    """Flags, shortened for a table."""
    return Text(", ".join(short_flag(cell(flag)) for flag in flags), style="red")
