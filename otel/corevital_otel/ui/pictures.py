"""Numbers as shapes for SVG: lines with gaps, and shades. They are drawn without any script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

WIDTH: Final = 1000
HEIGHT: Final = 120

_BITS: Final = (0.1, 0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0)
"""Upper bounds of surprisal's shades: about 1 in 1.07, 1.4, 2, 4, 8, 23, 64 and 256."""


def shade(bits: float) -> str:
    """The style of a surprisal: ``s0`` (expected) to ``s8``, or ``unknown``."""
    if not math.isfinite(bits):
        return "unknown"
    return f"s{next((number for number, bound in enumerate(_BITS) if bits < bound), len(_BITS))}"


def top_of(values: Sequence[float], least: float) -> float:
    """A whole number at or above all values, for an axis."""
    return max([least, *(math.ceil(value) for value in values if math.isfinite(value))])


def lines(values: Sequence[float], top: float) -> list[str]:
    """The points of lines from 0 to ``top`` over :data:`WIDTH` by :data:`HEIGHT`, one line between two gaps.

    Of more values than pixels, the lowest and the highest of each pixel.
    """
    found: list[str] = []
    points: list[str] = []
    step = max(1, math.ceil(len(values) / WIDTH))
    scale = WIDTH / max(len(values) - 1, 1)
    for start in range(0, len(values), step):
        known = [value for value in values[start : start + step] if math.isfinite(value)]
        if not known:
            if points:
                found.append(" ".join(points))
            points = []
            continue
        for value in dict.fromkeys((min(known), max(known))):
            points.append(f"{start * scale:.1f},{HEIGHT * (1 - min(max(value / top, 0), 1)):.1f}")
    return [*found, " ".join(points)] if points else found


def place(index: int, count: int) -> float | None:
    """Where a token is on the axis; None where it is not among them."""
    return round(index * WIDTH / max(count - 1, 1), 1) if 0 <= index < count else None
