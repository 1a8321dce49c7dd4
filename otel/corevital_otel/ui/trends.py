"""Distributions over time: how many requests at which risk, and how scores and signals were spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from corevital_otel import conventions as names
from corevital_otel.store.listing import Listing
from corevital_otel.ui.asked import LEVELS, Asked
from corevital_otel.ui.listing import choices, level

MOST: Final = 20_000
"""Requests that a page looks at, the newest."""
COLUMNS: Final = 48
"""Steps of time at most."""

_STEPS: Final = tuple(
    timedelta(seconds=seconds)
    for seconds in (10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)
)
_SHADES: Final = 6
_BOUNDS: Final = (datetime(1971, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC))
"""Times that are drawn; others go into the first and the last column."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A number of each request, and how its values are grouped.

    Attributes:
        title: for people.
        unit: of the values.
        bounds: upper bounds of the groups but the last, which is open.
    """

    title: str
    unit: str
    bounds: tuple[float, ...]


_SIGNALS: Final = (
    Signal("Risk score", "", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
    Signal("Output tokens", "", (4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)),
    Signal("Mean entropy", "bits", (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6)),
    Signal("Mean surprisal", "bits", (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6)),
    Signal("Time to first token", "s", (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)),
)
_ATTRIBUTES: Final = (
    names.FEATURES["entropy_mean"], names.FEATURES["surprisal_mean"], names.RESPONSE_TIME_TO_FIRST_CHUNK,
)  # fmt: skip


def view(db: Path, asked: Asked) -> dict[str, Any]:
    """The values of the template.

    Raises:
        StoreError: the store cannot be read.
    """
    store = Listing(db)
    rows = [row for row in store.values(asked.which, _ATTRIBUTES, MOST) if isinstance(row[0], str)]
    values: dict[str, Any] = {
        "asked": asked,
        "choices": store.choices(),
        "count": len(rows),
        "newest": len(rows) == MOST,
        "columns": [],
        "levels": LEVELS,
        **choices(),
    }
    moments = [_moment(row[0]) for row in rows]
    known = [(moment, row) for moment, row in zip(moments, rows, strict=True) if moment is not None]
    if not known:
        return values
    first = max(
        asked.which.since or known[-1][0], known[-1][0] if len(rows) == MOST else datetime.min.replace(tzinfo=UTC)
    )
    last = asked.which.until or max(known[0][0], datetime.now(UTC) if asked.which.since else known[0][0])
    first, last = (min(max(moment, _BOUNDS[0]), _BOUNDS[1]) for moment in (first, last))
    step, start, count = _steps(first, last)
    columns: list[list[Sequence[Any]]] = [[] for _ in range(count)]
    for moment, row in known:
        columns[min(max(int((moment - start) / step), 0), count - 1)].append(row)
    most = max(map(len, columns))
    return values | {
        "columns": [_column(asked, rows, start + step * number, step, most) for number, rows in enumerate(columns)],
        "most": most,
        "step": _words(step),
        "ticks": _ticks(start, step, count),
        "signals": [
            _heat(signal, [_values(rows, number) for rows in columns]) for number, signal in enumerate(_SIGNALS)
        ],
    }


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    except ValueError:
        return None


def _steps(first: datetime, last: datetime) -> tuple[timedelta, datetime, int]:
    """The step, the start, a whole number of steps since the epoch, and how many there are."""
    span = max(last - first, timedelta(seconds=1))
    step = next(
        (step for step in _STEPS if span / step <= COLUMNS - 2),
        timedelta(days=math.ceil(span.days / (COLUMNS - 2)) or 1),
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    start = epoch + (first - epoch) // step * step
    return step, start, math.floor((last - start) / step) + 1


def _words(step: timedelta) -> str:
    seconds = step.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _ticks(start: datetime, step: timedelta, count: int) -> list[tuple[int, str]]:
    """About eight columns with their times; four of longer times, and none at the end, where they have no place."""
    if step >= timedelta(days=1):
        form, most = "%m-%d", 8
    elif step < timedelta(minutes=1):
        form, most = "%H:%M:%S", 4
    elif step * count <= timedelta(days=1, hours=2):
        form, most = "%H:%M", 8
    else:
        form, most = "%m-%d %H:%M", 4
    numbers = range(0, math.floor(count * 7 / 8) + 1, max(1, math.ceil(count / most)))
    return [(number, (start + step * number).strftime(form)) for number in numbers if number < count]


def _column(asked: Asked, rows: list[Sequence[Any]], start: datetime, step: timedelta, most: int) -> dict[str, Any]:
    """A stack of levels, the gravest at the bottom, as parts of the fullest column; and the link to its requests."""
    counts = {name: sum(level(str(row[2])) == name for row in rows) for name in LEVELS}
    parts, below = [], 0.0
    for name, count in counts.items():
        height = 100 * count / most if most else 0.0
        if count:
            parts.append((name, round(100 - below - height, 2), round(height, 2)))
        below += height
    since, until = (moment.strftime("%Y-%m-%dT%H:%M:%S") for moment in (start, start + step))
    words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return {
        "parts": parts,
        "link": asked.link("/requests", since=since, until=until, page="", sort=""),
        "title": f"{start:%Y-%m-%d %H:%M} UTC: {len(rows)} requests{f' ({words})' if words else ''}",
    }


def _values(rows: list[Sequence[Any]], number: int) -> list[float]:
    """The values of a signal: score, tokens, then the attributes."""
    place = (1, 4, 5, 6, 7)[number]
    return [float(row[place]) for row in rows if isinstance(row[place], int | float) and math.isfinite(row[place])]


def _heat(signal: Signal, columns: list[list[float]]) -> dict[str, Any]:
    """A field of shades: columns of time, rows of values; each shade is a share of its column."""
    cells = []
    for x, values in enumerate(columns):
        groups = [0] * (len(signal.bounds) + 1)
        for value in values:
            groups[next((y for y, bound in enumerate(signal.bounds) if value < bound), len(signal.bounds))] += 1
        for y, count in enumerate(groups):
            if count:
                share = count / len(values)
                between = _between(signal, y)
                cells.append(
                    (x, len(groups) - 1 - y, max(1, math.ceil(share * _SHADES)), f"{between}: {count} ({share:.0%})")
                )
    return {
        "title": signal.title,
        "unit": signal.unit,
        "cells": cells,
        "width": len(columns),
        "height": len(signal.bounds) + 1,
        "labels": [(len(signal.bounds) - y, f"{bound:g}") for y, bound in enumerate(signal.bounds) if y % 2],
        "middle": _middle([value for values in columns for value in values]),
    }


def _between(signal: Signal, number: int) -> str:
    low = signal.bounds[number - 1] if number else 0
    high = f" to {signal.bounds[number]:g}" if number < len(signal.bounds) else " and more"
    return f"{low:g}{high} {signal.unit}".rstrip()


def _middle(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
