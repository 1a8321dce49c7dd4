"""The pictures of docs/operate/incident.md can be drawn from any recorded run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from integration.docs.pictures import PICTURED, main, value_at
from tests.harness.panels import Panel, named, panels

VARIABLES = {
    "cluster": ".*",
    "model": ".+",
    "instance": ".+",
    "__rate_interval": "15s",
    "__range": "60s",
    "compare": "30s",
}


def test_panels_are_those_of_the_committed_dashboards_with_nothing_left_to_fill_in() -> None:
    found = panels(VARIABLES)
    assert {panel.dashboard for panel in found} >= PICTURED.keys()
    assert not [query for panel in found for query in panel.queries if "$" in "".join(query)]


def test_an_unknown_variable_is_an_error_that_names_it() -> None:
    with pytest.raises(KeyError, match="model"):
        panels({name: value for name, value in VARIABLES.items() if name != "model"})


def test_a_legend_is_filled_from_labels() -> None:
    assert named("{{gen_ai_request_model}}, 1 h", {"gen_ai_request_model": "tiny"}) == "tiny, 1 h"


def test_a_value_is_the_newest_at_that_time_and_never_nan() -> None:
    assert value_at([[0, 1.0], [1, 2.0], [2, float("nan")], [3, 4.0]], 2.5) == 2.0


def series(panel: Panel, number: int, legend: str) -> dict[str, object]:
    points = [[float(at), at % 7 + number] for at in range(60)]
    return {
        "legend": legend,
        "labels": {"le": str(number)} if panel.kind == "heatmap" else {"a": "b"},
        "points": points,
    }


@pytest.mark.parametrize("empty", [False, True], ids=["with data", "without"])
def test_every_kind_of_panel_is_drawn(tmp_path: Path, empty: bool, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = [
        {
            **asdict(panel),
            "series": [] if empty else [series(panel, at, query[1]) for at, query in enumerate(panel.queries)],
        }
        for panel in panels(VARIABLES)
    ]
    story = {"loops": [20.0, 40.0], "told": [25.0, 50.0], "seconds": 60.0}
    (tmp_path / "run.json").write_text(json.dumps({"story": story, "panels": drawn}))
    main(str(tmp_path / "run.json"), str(tmp_path / "pictures"))
    assert {file.stem for file in (tmp_path / "pictures").iterdir()} == PICTURED.keys()
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (tmp_path / "pictures").iterdir())
    assert capsys.readouterr().out.count("panels") == len(PICTURED)
