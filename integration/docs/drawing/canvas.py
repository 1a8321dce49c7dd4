"""A page in pixels: panels' frames, texts, and axes for what matplotlib draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.docs.drawing.fields import Clock
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

WIDTH: Final = 1600
COLUMN: Final = WIDTH / 24
ROW: Final = 38
"""Pixels of a column and of a row of Grafana's grid, the gap included."""
GROUND, PAPER, EDGE, INK, QUIET = "#111217", "#181b1f", "#25272c", "#ccccdc", "#8e9199"


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels from the upper left."""

    x: float
    y: float
    w: float
    h: float

    def inside(self, left: float, top: float, right: float, bottom: float) -> Box:
        return Box(self.x + left, self.y + top, self.w - left - right, self.h - top - bottom)


class Canvas:
    """A page of a fixed size, whose pixels are points.

    Args:
        height: in pixels.
        clock: what times are shown.
    """

    def __init__(self, height: float, clock: Clock) -> None:
        self.height, self.clock = height, clock
        self.figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor=GROUND)
        self._page = self.figure.add_axes((0, 0, 1, 1))
        self._page.set_xlim(0, WIDTH)
        self._page.set_ylim(height, 0)
        self._page.axis("off")

    def rectangle(self, box: Box, colour: str, edge: str = "none", rounded: float = 0.0) -> None:
        if rounded:
            style = f"round,pad=0,rounding_size={rounded}"
            corner = (box.x, box.y)
            self._page.add_patch(
                FancyBboxPatch(corner, box.w, box.h, boxstyle=style, facecolor=colour, edgecolor=edge, lw=1)
            )
        else:
            self._page.add_patch(Rectangle((box.x, box.y), box.w, box.h, facecolor=colour, edgecolor=edge, lw=1))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        colour: str = INK,
        align: str = "left",
        width: float | None = None,
        weight: str = "normal",
    ) -> None:
        """A line of text, its middle at ``y``; cut to ``width`` pixels."""
        if width is not None and len(text) > (most := max(2, int(width / (0.56 * size)))):
            text = text[: most - 1] + "…"
        self._page.text(x, y, text, size=size, color=colour, ha=align, va="center", weight=weight, parse_math=False)

    def axes(self, box: Box) -> Axes:
        """Axes for a plot, without a frame."""
        place = (box.x / WIDTH, 1 - (box.y + box.h) / self.height, box.w / WIDTH, box.h / self.height)
        made = self.figure.add_axes(place, facecolor="none")
        for spine in made.spines.values():
            spine.set_visible(False)
        return made

    def save(self, file: Path) -> None:
        """As a PNG of 256 colours, a third of the size."""
        self.figure.savefig(file, dpi=72, facecolor=GROUND)
        with Image.open(file) as picture:
            small = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        small.save(file, optimize=True)
