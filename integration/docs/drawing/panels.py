"""One function for each type of panel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from integration.docs.drawing.canvas import EDGE, GROUND, INK, QUIET, Box, Canvas
from integration.docs.drawing.fields import CLASSIC, Field
from integration.docs.drawing.tables import Answer, rows_of
from integration.docs.recording import named
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

Json = dict[str, Any]
Marks = Mapping[str, tuple[str, list[float]]]
"""Annotations: colour and unix times, by name."""
Series = list[tuple[str, list[tuple[float, float]]]]
_LINE: Final = 18
"""Pixels of a line of a legend."""


def _series(answers: list[Answer]) -> Series:
    """Each series' name and points, those without a number left out."""
    found = []
    for answer in answers:
        for labels, points in answer.series:
            name = " ".join(labels.values()) if answer.legend == "__auto" else named(answer.legend, labels)
            known = [(at, value) for at, value in points if not math.isnan(value)]
            if known:
                found.append((name, known))
    return found


def _empty(canvas: Canvas, panel: Json, box: Box) -> None:
    text = panel["fieldConfig"]["defaults"].get("noValue", "No data")
    canvas.text(box.x + box.w / 2, box.y + box.h / 2, text, 14, QUIET, "center")


def _hours(canvas: Canvas, points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Times as shown and values, with a gap where two seconds are missing."""
    hours, values = [], []
    for number, (at, value) in enumerate(points):
        if number and at - points[number - 1][0] > 2.5:
            hours.append(canvas.clock.hours(at - 1))
            values.append(math.nan)
        hours.append(canvas.clock.hours(at))
        values.append(value)
    return hours, values


def _time_axis(canvas: Canvas, axes: Axes) -> None:
    first, last = canvas.clock.shown, canvas.clock.hours(canvas.clock.at)
    axes.set_xlim(first, last)
    step = next(step for step in (1 / 12, 1 / 6, 0.25, 0.5, 1.0, 2.0, 6.0, 24.0) if (last - first) / step <= 8)
    ticks = np.arange(math.ceil((first + 0.02 * (last - first)) / step) * step, last, step)
    axes.set_xticks(list(ticks), [f"{int(tick + 1e-6) % 24:02d}:{round(tick % 1 * 60) % 60:02d}" for tick in ticks])
    axes.tick_params(labelsize=11, colors=QUIET, length=0)


def _marks(canvas: Canvas, axes: Axes, marks: Marks) -> None:
    for colour, times in marks.values():
        for at in times:
            axes.axvline(canvas.clock.hours(at), color=colour, lw=1.1, ls=(0, (4, 3)), zorder=5)


def stat(canvas: Canvas, panel: Json, answers: list[Answer], box: Box, marks: Marks) -> None:
    """The last values, large, above their course."""
    series, options = _series(answers), panel["options"]
    if not series:
        _empty(canvas, panel, box)
        return
    width = box.w / len(series)
    for number, (name, points) in enumerate(series):
        field = Field(panel["fieldConfig"], name)
        text, colour = field.shown(points[-1][1], canvas.clock)
        part = Box(box.x + number * width, box.y, width, box.h)
        if options["graphMode"] == "area" and len(points) > 1:
            axes = canvas.axes(part.inside(0, part.h * 0.5, 0, 0))
            hours, values = _hours(canvas, points)
            axes.fill_between(hours, values, color=colour, alpha=0.2, lw=0)
            axes.plot(hours, values, color=colour, lw=1.2)
            axes.set_xlim(canvas.clock.shown, canvas.clock.hours(canvas.clock.at))
            axes.set_ylim(0, max(0.001, 1.1 * max(value for _, value in points)))
            axes.axis("off")
        middle = part.x + part.w / 2
        if options["textMode"] == "value_and_name":
            canvas.text(middle, part.y + 8, name, 13, INK, "center")
        canvas.text(middle, part.y + part.h * 0.36 + 4, text, 30, colour, "center", weight="bold")


def timeseries(canvas: Canvas, panel: Json, answers: list[Answer], box: Box, marks: Marks) -> None:
    """Lines over time, or areas on each other, over a legend with the last and the largest value."""
    series = _series(answers)
    if not series:
        _empty(canvas, panel, box)
        return
    legend = min(len(series), 4)
    plot = box.inside(62, 4, 8, 26 + _LINE * legend)
    axes = canvas.axes(plot)
    _time_axis(canvas, axes)
    fields = [Field(panel["fieldConfig"], name) for name, _ in series]
    colours = [field.fixed_colour() or CLASSIC[at % len(CLASSIC)] for at, field in enumerate(fields)]
    stacking = (fields[0].setting("custom.stacking") or {}).get("mode", "none")
    if stacking == "none":
        for field, colour, (_, points) in zip(fields, colours, series, strict=True):
            dashed = (field.setting("custom.lineStyle") or {}).get("fill") == "dash"
            hours, values = _hours(canvas, points)
            axes.plot(hours, values, color=colour, lw=1.4, ls="--" if dashed else "-")
            if not dashed and len(series) < 4:
                axes.fill_between(hours, values, color=colour, alpha=0.1, lw=0)
    else:
        _stack(canvas, axes, series, colours, percent=stacking == "percent")
    for start, colour in fields[0].steps() if fields[0].setting("custom.thresholdsStyle") else ():
        if math.isfinite(start):
            axes.axhline(start, color=colour, lw=1, ls=(0, (6, 4)))
    _marks(canvas, axes, marks)
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] < 1e-9:
        axes.set_ylim(top=1)
    axes.locator_params(axis="y", nbins=5)
    shown = Field(panel["fieldConfig"], "")
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{value:.0%}" if stacking == "percent" else shown.text(value, canvas.clock)
    )
    axes.grid(color=EDGE, lw=0.8)
    for number, (field, colour, (name, points)) in enumerate(zip(fields, colours, series, strict=True)):
        if number >= legend:
            break
        y = plot.y + plot.h + 30 + _LINE * number
        canvas.rectangle(Box(box.x + 4, y - 2, 14, 4), colour)
        hidden = f"   (and {len(series) - legend} more)" if number == legend - 1 and len(series) > legend else ""
        canvas.text(box.x + 24, y, name + hidden, 11, INK, width=box.w - 210)
        last, most = points[-1][1], max(value for _, value in points)
        canvas.text(box.x + box.w - 100, y, field.text(last, canvas.clock), 11, INK, "right")
        canvas.text(box.x + box.w - 6, y, f"max {field.text(most, canvas.clock)}", 11, QUIET, "right")


def _stack(canvas: Canvas, axes: Axes, series: Series, colours: list[str], percent: bool) -> None:
    times = sorted({round(at) for _, points in series for at, _ in points})
    table = np.array(
        [[{round(at): value for at, value in points}.get(at, 0.0) for at in times] for _, points in series]
    )
    if percent:
        table = table / np.maximum(table.sum(axis=0), 1e-12)
    axes.stackplot([canvas.clock.hours(at) for at in times], table, colors=colours, alpha=0.6, lw=0)


def heatmap(canvas: Canvas, panel: Json, answers: list[Answer], box: Box, marks: Marks) -> None:
    """Observations by bucket over time, from Prometheus' cumulative ones."""
    buckets = sorted(
        ((float(labels["le"]), {round(at): value for at, value in points}) for labels, points in answers[0].series),
        key=lambda each: each[0],
    )
    if not buckets:
        _empty(canvas, panel, box)
        return
    times = sorted({at for _, points in buckets for at in points})
    cumulative = np.array([[points.get(at, 0.0) for at in times] for _, points in buckets])
    counts = np.ma.masked_less(np.diff(np.nan_to_num(cumulative), axis=0, prepend=0), 1e-6)
    axes = canvas.axes(box.inside(62, 4, 8, 26))
    hours = [canvas.clock.hours(at) for at in times]
    axes.pcolormesh(hours, np.arange(len(buckets)), counts, cmap="Blues_r", norm=PowerNorm(0.5), shading="nearest")
    kept = range(0, len(buckets), max(1, len(buckets) // 8))
    _time_axis(canvas, axes)
    axes.set_yticks(list(kept), ["more" if math.isinf(buckets[at][0]) else f"{buckets[at][0]:.3g}" for at in kept])
    _marks(canvas, axes, marks)


def state_timeline(canvas: Canvas, panel: Json, answers: list[Answer], box: Box, marks: Marks) -> None:
    """A row for each series, coloured by its state at each time."""
    series = _series(answers)
    if not series:
        _empty(canvas, panel, box)
        return
    names = 150
    plot = box.inside(names, 4, 8, 48)
    axes = canvas.axes(plot)
    height = panel["options"]["rowHeight"]
    for row, (name, points) in enumerate(series):
        field = Field(panel["fieldConfig"], name)
        for start, end, value in _spells(points):
            colour = field.shown(value, canvas.clock)[1]
            begin, length = canvas.clock.hours(start), canvas.clock.hours(end) - canvas.clock.hours(start)
            axes.broken_barh([(begin, length)], (row + (1 - height) / 2, height), facecolors=colour, alpha=0.85, lw=0)
        middle = plot.y + plot.h * (row + 0.5) / len(series)
        canvas.text(
            box.x + names - 8, middle, name, min(12, plot.h / len(series) * 0.9), INK, "right", width=names - 12
        )
    axes.set_ylim(len(series), 0)
    axes.set_yticks([])
    _time_axis(canvas, axes)
    _marks(canvas, axes, marks)
    x = box.x + 8
    for text, colour in Field(panel["fieldConfig"], "").legend():
        canvas.rectangle(Box(x, box.y + box.h - 12, 14, 4), colour)
        canvas.text(x + 20, box.y + box.h - 10, text, 12, INK)
        x += 44 + 7 * len(text)


def _spells(points: list[tuple[float, float]]) -> list[tuple[float, float, float]]:
    """Beginning, end and value of each time without a change or a gap."""
    spells: list[tuple[float, float, float]] = []
    for at, value in points:
        if spells and spells[-1][2] == value and at - spells[-1][1] <= 2.5:
            spells[-1] = (spells[-1][0], at, value)
        else:
            if spells and at - spells[-1][1] <= 2.5:
                spells[-1] = (spells[-1][0], at, spells[-1][2])
            spells.append((at, at, value))
    return spells


def table(canvas: Canvas, panel: Json, answers: list[Answer], box: Box, marks: Marks) -> None:
    """Headings, and rows as far as there is room."""
    headings, rows = rows_of(panel, answers)
    if not rows:
        _empty(canvas, panel, box)
        return
    fields = {name: Field(panel["fieldConfig"], name) for name in headings}
    numeric = {name for name in headings if any(isinstance(row.get(name), float) for row in rows)}
    cells = {
        name: [_cell(fields[name], row.get(name, math.nan if name in numeric else ""), canvas) for row in rows]
        for name in headings
    }
    wanted = {
        name: fields[name].setting("custom.width") or 26 + 7.2 * max(len(name), *(len(text) for text, _ in cells[name]))
        for name in headings
    }
    room = max(0.0, box.w - sum(wanted.values())) / len(headings)
    scale = min(1.0, box.w / sum(wanted.values()))
    most, x = int((box.h - 28) // 30), box.x
    for name in headings:
        width = (wanted[name] + room) * scale
        coloured = (fields[name].setting("custom.cellOptions") or {}).get("type")
        right = name in numeric and coloured != "color-background"
        edge, align = (x + width - 10, "right") if right else (x + 8, "left")
        canvas.text(edge, box.y + 12, name, 12, "#6e9fff", align, width=width, weight="bold")
        for at, (text, colour) in enumerate(cells[name][:most]):
            y = box.y + 28 + 30 * at
            filled = coloured == "color-background"
            if filled:
                canvas.rectangle(Box(x + 1, y, width - 2, 29), colour)
            canvas.text(edge, y + 15, text, 12.5, GROUND if filled else colour, align, width=width - 8)
        x += width
    for at in range(min(most, len(rows)) + 1):
        canvas.rectangle(Box(box.x, box.y + 27.5 + 30 * at, box.w, 0.6), EDGE)
    if len(rows) > most:
        canvas.text(box.x + box.w - 10, box.y + box.h - 2, f"{len(rows)} rows: scroll", 11, QUIET, "right")


def _cell(field: Field, value: str | float, canvas: Canvas) -> tuple[str, str]:
    if isinstance(value, str):
        return value, "#6e9fff" if field.links and value else INK
    text, colour = field.shown(value, canvas.clock)
    coloured = (field.setting("custom.cellOptions") or {}).get("type")
    return text, colour if coloured in ("color-background", "color-text") or text == "-" else INK


KINDS: Final[Mapping[str, Callable[[Canvas, Json, list[Answer], Box, Marks], None]]] = {
    "stat": stat,
    "timeseries": timeseries,
    "heatmap": heatmap,
    "state-timeline": state_timeline,
    "table": table,
}
"""By Grafana's name of the type; a text is not drawn."""
