"""The pictures are drawn from the dashboards' JSON: what it says of a panel is in the picture of any run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from integration.docs.drawing.fields import Clock, Field
from integration.docs.drawing.tables import Answer, rows_of
from integration.docs.pictures import FIRST_SCREEN, PICTURED, main
from integration.docs.recording import dashboards, each_panel, filled, named

MADE = dashboards()
CLOCK = Clock(start=1000.0, at=1180.0, speed=60)
STORY = {"start": 1000.0, "at": 1180.0, "speed": 60, "shown": {"compare": "1h"}}
LABELS = {"instance": "gpu-1:8000", "job": "vllm", "gen_ai_request_model": "tiny", "le": "0.5", "risk_level": "high"}


def panel(title: str) -> dict[str, Any]:
    return next(panel for panel in each_panel(MADE["corevital-fleet"]) if panel["title"] == title)


def test_an_unknown_variable_is_an_error_that_names_it() -> None:
    assert filled("rate(x[$__rate_interval]) and ${model:pipe}", {"__rate_interval": "15s", "model": ".*"})
    with pytest.raises(KeyError, match="model"):
        filled('x{model="$model"}', {})


def test_a_legend_is_filled_from_labels() -> None:
    assert named("{{gen_ai_request_model}}, 1 h", {"gen_ai_request_model": "tiny"}) == "tiny, 1 h"


def test_a_run_that_is_faster_has_an_ordinary_clock() -> None:
    assert CLOCK.text(1000) == "08:00"
    assert CLOCK.text(1090) == "09:30"
    assert CLOCK.ago(1140) == "40 minutes ago"


@pytest.mark.parametrize(("value", "shown"), [(0.004, "0.4%"), (0.05, "5.0%"), (0.5, "50.0%"), (math.nan, "-")])
def test_a_cell_has_its_columns_unit_and_thresholds(value: float, shown: str) -> None:
    field = Field(panel("Servers, the worst first")["fieldConfig"], "Faulty")
    text, colour = field.shown(value, CLOCK)
    assert text == shown
    expected = {"0.4%": "#ccccdc", "5.0%": "#ff9830", "50.0%": "#f2495c", "-": "#8e8e8e"}
    assert colour == expected[shown]


def test_states_and_levels_have_the_colours_of_the_file() -> None:
    field = Field(panel("Since when")["fieldConfig"], "gpu-1:8000")
    assert [field.shown(float(state), CLOCK) for state in (0, 2, 3)] == [
        ("no alert", "#73bf69"),
        ("warning", "#ff9830"),
        ("critical", "#f2495c"),
    ]
    assert Field(panel("Risk levels")["fieldConfig"], "high").fixed_colour() == "#f2495c"


def test_a_table_merges_renames_and_sorts_as_the_file_says() -> None:
    servers = panel("Servers, the worst first")
    hosts = {"a:1": (0.0, 0.3), "b:1": (3.0, math.nan), "c:1": (0.0, 0.5), "d:1": (0.0, math.nan)}

    def series(column: int) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        return [({"instance": host, "job": "vllm"}, [(9.0, values[column])]) for host, values in hosts.items()]

    refs = [target["refId"] for target in servers["targets"]]
    answers = [Answer(refs[0], "State", series(0)), Answer(refs[3], "Faulty", series(1))]
    versions = [({**labels, "version": "0.2.0"}, points) for labels, points in series(0)[:1]]
    headings, rows = rows_of(servers, [*answers, Answer(refs[11], "Version", versions)])
    assert headings == ["State", "Server", "Faulty", "corevital"]
    assert [row["Server"] for row in rows] == ["b:1", "c:1", "a:1", "d:1"]
    assert [row.get("corevital") for row in rows] == [None, None, "0.2.0", None]


def recorded(uid: str, empty: bool) -> dict[str, Any]:
    points = [[1000.0 + at, float(at % 4)] for at in range(0, 180, 6)]
    second = {**LABELS, "le": "+Inf", "instance": "gpu-2:8000"}
    answer: list[Any] = [] if empty else [[LABELS, points], [second, points[:9]]]
    panels = {
        str(panel["id"]): {
            target["refId"]: {"legend": target.get("legendFormat", "").replace("$compare", "1h"), "series": answer}
            for target in panel.get("targets", ())
        }
        for panel in each_panel(MADE[uid])
    }
    return {"panels": panels, "marks": {"Alerts": answer}}


@pytest.mark.parametrize("empty", [False, True], ids=["with data", "without"])
def test_every_kind_of_panel_is_drawn(tmp_path: Path, empty: bool, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"story": STORY, "dashboards": {uid: recorded(uid, empty) for uid in PICTURED}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    main(str(tmp_path / "run.json"), str(tmp_path / "pictures"), "a-run")
    names = {uid.replace("corevital", "a-run") for uid in PICTURED}
    drawn = {file.stem: file for file in (tmp_path / "pictures").iterdir()}
    assert drawn.keys() == {*names, FIRST_SCREEN.replace("corevital", "a-run") + "-first-screen"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn.values())
    assert capsys.readouterr().out.count("panels") == len(drawn)
