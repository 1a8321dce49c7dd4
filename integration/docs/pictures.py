"""Draws dashboards from JSON and a recorded run: ``python -m integration.docs.pictures RUN.json FOLDER [PREFIX]``.

Not screenshots of Grafana: see :mod:`integration.docs.drawing`. A run is what :mod:`integration.docs.incident` or
:mod:`integration.docs.fleet` recorded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from integration.docs.drawing.canvas import COLUMN, EDGE, INK, PAPER, QUIET, ROW, Box, Canvas
from integration.docs.drawing.fields import Clock, colour
from integration.docs.drawing.panels import KINDS, Marks
from integration.docs.drawing.tables import Answer
from integration.docs.recording import dashboards, filled
from PIL import Image

Json = dict[str, Any]
PICTURED = ("corevital-fleet", "corevital-model")
FIRST_SCREEN = "corevital-fleet"
"""Its first row is a picture too."""
NOTE = "Drawn from the dashboard's JSON and a real Prometheus' answers to its queries; not a screenshot of Grafana."
_HEAD = 66


def _marks(dashboard: Json, recorded: Json) -> Marks:
    """When each annotation's series begin."""
    found = {}
    for mark in dashboard.get("annotations", {}).get("list", ()):
        times = []
        for _, points in recorded["marks"].get(mark["name"], ()):
            times += [at for number, (at, _) in enumerate(points) if not number or at - points[number - 1][0] > 2.5]
        found[mark["name"]] = (colour(mark["iconColor"]), times)
    return found


def _first_screen(dashboard: Json, whole: Path, file: Path) -> int:
    """Cut the first row out of a picture; returns how many panels it has."""
    end = [panel["gridPos"]["y"] for panel in dashboard["panels"] if panel["type"] == "row"][1]
    with Image.open(whole) as picture:
        picture.crop((0, 0, picture.width, _HEAD + end * ROW)).save(file)
    return sum(panel["gridPos"]["y"] < end for panel in dashboard["panels"]) - 1


def draw(dashboard: Json, recorded: Json, story: Json, file: Path) -> int:
    """Draw a dashboard; returns how many panels it has.

    Raises:
        KeyError: a panel's type, unit, colour or transformation is one that this renderer does not know.
    """
    panels = dashboard["panels"]
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    clock = Clock(story["start"], story["at"], story["speed"])
    canvas = Canvas(_HEAD + bottom * ROW + 8, clock)
    marks = _marks(dashboard, recorded)
    canvas.text(16, 22, dashboard["title"].removeprefix("corevital: "), 20, INK, weight="bold")
    stand_ins = " Its servers are stand-ins with made-up numbers." if story.get("stand_ins") else ""
    speed = f" Rules {story['speed']:g} times as fast, clock at ordinary speed." if story["speed"] != 1 else ""
    canvas.text(16, 48, NOTE + stand_ins + speed, 12, QUIET)
    x = 1592.0
    for name, (shown, times) in reversed(list(marks.items())):
        text = f"{name}: {len(times)}"
        x -= 10 + 7.2 * len(text)
        canvas.text(x, 22, text, 12, INK)
        canvas.rectangle(Box(x - 20, 16, 2, 13), shown)
        x -= 30
    for panel in panels:
        place = panel["gridPos"]
        box = Box(place["x"] * COLUMN + 4, _HEAD + place["y"] * ROW, place["w"] * COLUMN - 8, place["h"] * ROW - 8)
        if panel["type"] == "row":
            canvas.text(
                box.x + 6, box.y + box.h / 2, "⌄ " + filled(panel["title"], story["shown"]), 15, INK, weight="bold"
            )
            continue
        canvas.rectangle(box, PAPER, EDGE, rounded=3)
        canvas.text(
            box.x + 10, box.y + 16, filled(panel["title"], story["shown"]), 13.5, INK, width=box.w, weight="bold"
        )
        found = recorded["panels"].get(str(panel["id"]), {})
        answers = [Answer(ref, each["legend"], each["series"]) for ref, each in found.items()]
        KINDS[panel["type"]](canvas, panel, answers, box.inside(8, 32, 8, 8), marks)
    canvas.save(file)
    return sum(panel["type"] != "row" for panel in panels)


def main(run: str, folder: str, prefix: str = "corevital") -> None:
    recorded = json.loads(Path(run).read_text())
    Path(folder).mkdir(parents=True, exist_ok=True)
    made = dashboards()
    for uid in PICTURED:
        file = Path(folder) / f"{uid.replace('corevital', prefix, 1)}.png"
        counts = {file: draw(made[uid], recorded["dashboards"][uid], recorded["story"], file)}
        if uid == FIRST_SCREEN:
            first = file.with_stem(f"{file.stem}-first-screen")
            counts[first] = _first_screen(made[uid], file, first)
        for each, count in counts.items():
            print(f"{each}: {count} panels, {each.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
