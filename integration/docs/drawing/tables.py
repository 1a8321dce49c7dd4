"""Rows of a table panel: Prometheus' answers in table format, and the panel's transformations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Row = dict[str, str | float]


@dataclass
class Answer:
    """What Prometheus answered to one query of a panel: labels, and pairs of unix time and value."""

    ref: str
    legend: str
    series: list[tuple[dict[str, str], list[tuple[float, float]]]]


def rows_of(panel: Json, answers: list[Answer]) -> tuple[list[str], list[Row]]:
    """Headings in order, and rows as sorted by the panel's options.

    Raises:
        KeyError: a transformation that this renderer does not know.
    """
    frames = [_frame(answer, alone=len(answers) == 1) for answer in answers]
    for transformation in panel.get("transformations", ()):
        frames = {"merge": _merge, "organize": _organize}[transformation["id"]](frames, transformation["options"])
    rows = [row for frame in frames for row in frame]
    headings = list(dict.fromkeys(name for row in rows for name in row))
    for by in reversed(panel["options"].get("sortBy") or ()):
        name, last = by["displayName"], by.get("desc", False)
        rows.sort(key=lambda row: _rank(row.get(name), last), reverse=last)
    return headings, rows


def _rank(value: str | float | None, last: bool) -> tuple[bool, float, str]:
    absent = value is None or (isinstance(value, float) and math.isnan(value))
    return (
        absent != last,
        0.0 if absent or isinstance(value, str) else float(value or 0),
        value if isinstance(value, str) else "",
    )


def _frame(answer: Answer, alone: bool) -> list[Row]:
    name = "Value" if alone else f"Value #{answer.ref}"
    return [{"Time": points[-1][0], **labels, name: points[-1][1]} for labels, points in answer.series if points]


def _merge(frames: list[list[Row]], options: Json) -> list[list[Row]]:
    """One row for rows that agree in the fields that all frames have."""
    frames = [frame for frame in frames if frame]
    if not frames:
        return []
    keys = sorted(set.intersection(*({name for row in frame for name in row} for frame in frames)))
    merged: dict[tuple[Any, ...], list[Row]] = {}
    for frame in frames:
        for row in frame:
            found = merged.setdefault(tuple(row.get(key) for key in keys), [])
            fits = next(
                (each for each in found if all(name not in each or each[name] == value for name, value in row.items())),
                None,
            )
            if fits is None:
                found.append(dict(row))
            else:
                fits.update(row)
    return [[row for rows in merged.values() for row in rows]]


def _organize(frames: list[list[Row]], options: Json) -> list[list[Row]]:
    excluded = {name for name, is_excluded in options["excludeByName"].items() if is_excluded}
    order, names = options.get("indexByName", {}), options["renameByName"]
    made = []
    for frame in frames:
        present = list(dict.fromkeys(name for row in frame for name in row))
        kept = sorted((name for name in present if name not in excluded), key=lambda name: order.get(name, len(order)))
        made.append([{names.get(name, name): row[name] for name in kept if name in row} for row in frame])
    # a row may lack the first field: headings in the order of the fields
    return [[{name: row[name] for name in _ordered(frame) if name in row} for row in frame] for frame in made]


def _ordered(frame: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in sorted(frame, key=len, reverse=True) for name in row))
