"""Draws dashboards from the data of a recorded run: ``python -m integration.docs.pictures RUN.json FOLDER``.

Not screenshots of Grafana: the panels' own queries, answered by a real Prometheus, in the dashboards' own layout.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

PICTURED = {"corevital-fleet": "Fleet health", "corevital-model": "Model"}
NOTE = (
    "drawn by corevital from a real Prometheus' data; not a screenshot of Grafana. Seconds of a run in which the "
    "rules are 60 times as fast; red: looping requests; dashed: the alert; numbers are those of three seconds later"
)
COLUMN, ROW = 0.5, 0.28
"""Inches of a column and of a row of Grafana's grid."""
GROUND, PAPER, INK, QUIET = "#111217", "#181b1f", "#d5d6da", "#8e9199"
COLOURS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#c0d8ff"]
UNITS = {"percentunit": (100.0, " %"), "s": (1.0, " s"), "reqps": (1.0, "/s"), "ops": (1.0, "/s")}


def written(value: float, unit: str) -> str:
    factor, sign = UNITS.get(unit, (1.0, ""))
    return f"{value * factor:.3g}{sign}"


def value_at(points: list[list[float]], time_s: float) -> float:
    """The newest value at that time; NaN if there is none."""
    return next((value for at, value in reversed(points) if at <= time_s and not math.isnan(value)), math.nan)


def draw_lines(axes: Axes, panel: dict[str, Any], story: dict[str, Any]) -> None:
    factor, sign = UNITS.get(panel["unit"], (1.0, ""))
    for number, series in enumerate(panel["series"]):
        times, values = zip(*series["points"], strict=True)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(times, [value * factor for value in values], lw=1.2, color=colour, label=series["legend"][:28])
    axes.axvspan(*story["loops"], color="#f2495c", alpha=0.12, lw=0)
    axes.axvline(story["told"][0], color="#f2495c", lw=0.8, ls="--")
    axes.set_xlim(0, story["seconds"])
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=6, colors=QUIET, length=2)
    axes.grid(color="#2c2f36", lw=0.5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{sign.strip()}")
    if 1 < len(panel["series"]) <= 6:
        axes.legend(fontsize=5.5, loc="upper left", framealpha=0.3, labelcolor=INK, facecolor=PAPER, edgecolor=PAPER)


def draw_buckets(axes: Axes, panel: dict[str, Any], story: dict[str, Any]) -> None:
    """Observations by bucket over time, from Prometheus' cumulative ones."""
    series = sorted(panel["series"], key=lambda each: float(each["labels"]["le"]))
    times = np.arange(0, story["seconds"], 1.0)
    cumulative = np.array([[value_at(each["points"], at) for at in times] for each in series])
    counts = np.ma.masked_less(np.diff(np.nan_to_num(cumulative), axis=0, prepend=0), 1e-6)
    axes.pcolormesh(times, np.arange(len(series)), counts, cmap="viridis", norm=PowerNorm(0.5), shading="nearest")
    kept = range(0, len(series), max(1, len(series) // 8))
    axes.set_yticks(list(kept), [f"{float(series[number]['labels']['le']):.3g}" for number in kept])
    axes.axvline(story["told"][0], color="#f2495c", lw=0.8, ls="--")
    axes.tick_params(labelsize=6, colors=QUIET, length=2)


def draw_numbers(axes: Axes, panel: dict[str, Any], story: dict[str, Any]) -> None:
    """Values just after the alert."""
    axes.axis("off")
    shown = []
    for series in panel["series"]:
        value, label = value_at(series["points"], story["told"][0] + 3), series["legend"]
        if not math.isnan(value):
            number = written(value, panel["unit"])
            alone = len(panel["series"]) == 1 and panel["kind"] == "stat"
            named = " ".join(series["labels"].values()) if label == "__auto" else f"{label}  {number}"
            shown.append(number if alone else named)
    size = 15 if panel["kind"] == "stat" else 7
    size = size if len(shown) == 1 or panel["kind"] == "table" else 9
    text = "\n".join(shown[:10]) or "none"
    axes.text(0.5, 0.45, text, ha="center", va="center", size=size, color=COLOURS[0], transform=axes.transAxes)


def draw(panels: list[dict[str, Any]], title: str, story: dict[str, Any], file: Path) -> None:
    bottom = max(panel["place"][1] + panel["place"][3] for panel in panels)
    width, height = 24 * COLUMN, bottom * ROW + 0.7
    figure = Figure(figsize=(width, height), facecolor=GROUND)
    for panel in panels:
        x, y, w, h = panel["place"]
        lines = panel["kind"] in ("timeseries", "heatmap")
        left = (x * COLUMN + (0.42 if lines else 0.1)) / width
        low = (bottom - y - h) * ROW + (0.25 if lines else 0.08)
        size = (w * COLUMN - (0.55 if lines else 0.2), h * ROW - (0.58 if lines else 0.4))
        axes = figure.add_axes((left, low / height, size[0] / width, size[1] / height), facecolor=PAPER)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(panel["title"], loc="left", size=7.5, color=INK, pad=4)
        if not panel["series"]:
            axes.set_axis_off()
            axes.text(0.5, 0.45, "no data", ha="center", size=8, color=QUIET, transform=axes.transAxes)
        else:
            {"timeseries": draw_lines, "heatmap": draw_buckets}.get(panel["kind"], draw_numbers)(axes, panel, story)
    figure.text(0.01, 1 - 0.3 / height, title, size=11, color=INK, weight="bold")
    figure.text(0.01, 1 - 0.55 / height, NOTE, size=6.5, color=QUIET)
    figure.savefig(file, dpi=80, facecolor=GROUND)


def main(run: str, folder: str) -> None:
    recorded = json.loads(Path(run).read_text())
    Path(folder).mkdir(parents=True, exist_ok=True)
    for uid, title in PICTURED.items():
        file = Path(folder) / f"{uid}.png"
        panels = [panel for panel in recorded["panels"] if panel["dashboard"] == uid]
        draw(panels, title, recorded["story"], file)
        print(f"{file}: {len(panels)} panels, {file.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
