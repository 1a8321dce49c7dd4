"""The dashboards' files: made by the code, valid for Grafana 11 and 12, and readable for anyone.

No Grafana runs here. Its stand-in are the types that Grafana publishes for dashboards, as JSON Schemas.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from dashboards.source.expressions import MAY_BE_EMPTY, expressions
from tests.dashboards.tools import DASHBOARDS, FILES, ROOT, known_series, series_in, unparsable

UIDS = {"corevital-fleet", "corevital-model", "corevital-requests", "corevital-itself", "corevital-runbooks"}
SCHEMAS = {number: json.loads((DASHBOARDS / f"schema/grafana-{number}.json").read_text()) for number in (11, 12)}

Json = dict[str, Any]


def panels(dashboard: Json) -> list[Json]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


PANELS = [pytest.param(panel, id=f"{uid}: {panel['title']}") for uid, made in FILES.items() for panel in panels(made)]


def errors(dashboard: Json, schemas: Json) -> Iterator[str]:
    """Errors of a dashboard by the schemas of one Grafana: its frame, each panel's options, each Tempo query."""
    frame = copy.deepcopy(dashboard)
    for mark in frame.get("annotations", {}).get("list", ()):
        if "expr" in mark:  # the type has only marks from Grafana's own store
            for name in ("target", "expr", "step", "titleFormat", "textFormat"):
                mark.pop(name, None)
    parts = [("dashboard", frame)]
    for panel in panels(dashboard):
        kind = panel["type"].replace("-", "")
        parts.append((f"{kind}.options", panel["options"]))
        if f"{kind}.custom" in schemas:
            parts.append((f"{kind}.custom", panel["fieldConfig"]["defaults"]["custom"]))
        parts += [("tempo", target) for target in panel.get("targets", ()) if "query" in target]
    for name, part in parts:
        for error in jsonschema.Draft7Validator(schemas[name]).iter_errors(part):
            yield f"{name} {error.json_path}: {error.message}"


def test_the_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dashboards.source", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(FILES) == UIDS


@pytest.mark.parametrize("grafana", SCHEMAS)
@pytest.mark.parametrize("uid", FILES)
def test_each_grafana_knows_every_field(uid: str, grafana: int) -> None:
    assert FILES[uid]["schemaVersion"] == 42
    assert not list(errors(FILES[uid], SCHEMAS[grafana]))


@pytest.mark.parametrize("grafana", SCHEMAS)
def test_the_schemas_are_not_empty(grafana: int) -> None:
    definitions = SCHEMAS[grafana]["dashboard"]["definitions"]
    assert len(definitions) >= 39
    assert definitions["Panel"]["additionalProperties"] is False


def set_at(dashboard: Json, *path: Any) -> None:
    *way, name, value = path
    for step in way:
        dashboard = dashboard[step]
    dashboard[name] = value


BREAKAGES: dict[str, Callable[[Json], None]] = {
    "a misspelt field of the dashboard": lambda made: set_at(made, "tittle", "x"),
    "a misspelt field of a panel": lambda made: set_at(made, "panels", 1, "datasourse", {}),
    "a panel with links that are text": lambda made: set_at(made, "panels", 1, "links", "none"),
    "a position that is text": lambda made: set_at(made, "panels", 1, "gridPos", "w", "half"),
    "a variable of unknown kind": lambda made: set_at(made, "templating", "list", 0, "type", "dropdown"),
    "a refresh that is a number": lambda made: set_at(made, "refresh", 30),
    "an unknown threshold mode": lambda made: set_at(
        made, "panels", 1, "fieldConfig", "defaults", "thresholds", "mode", "relative"
    ),
    "a misspelt option of a panel": lambda made: set_at(made, "panels", 1, "options", "colourMode", "value"),
    "an option with an unknown value": lambda made: set_at(made, "panels", 1, "options", "graphMode", "bars"),
}


@pytest.mark.parametrize("grafana", SCHEMAS)
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_dashboard_is_found(breakage: str, grafana: int) -> None:
    broken = copy.deepcopy(FILES["corevital-fleet"])
    BREAKAGES[breakage](broken)
    assert list(errors(broken, SCHEMAS[grafana]))


@pytest.mark.parametrize("grafana", SCHEMAS)
def test_a_broken_graph_or_trace_query_is_found(grafana: int) -> None:
    broken = copy.deepcopy(FILES["corevital-requests"])
    kinds = {panel["type"]: panel for panel in broken["panels"]}
    kinds["timeseries"]["fieldConfig"]["defaults"]["custom"]["lineWidht"] = 1
    kinds["table"]["targets"][0]["tableType"] = "rows"
    assert len(list(errors(broken, SCHEMAS[grafana]))) == 2


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_a_description_and_a_unit(panel: Json) -> None:
    assert panel["description"].endswith(".")
    if panel["type"] != "text":
        assert panel["fieldConfig"]["defaults"]["noValue"]
        assert panel["datasource"]["uid"] in ("${datasource}", "${tempo}")
    if panel["type"] in ("stat", "timeseries"):
        assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel.get("targets", ()):
        assert target["datasource"] == panel["datasource"]
    assert len({target["refId"] for target in panel.get("targets", ())}) == len(panel.get("targets", ()))
    if panel["type"] == "stat":
        assert panel["options"]["reduceOptions"]["calcs"] == ["lastNotNull"]


@pytest.mark.parametrize("uid", FILES)
def test_a_dashboard_keeps_its_place_its_time_and_its_variables(uid: str) -> None:
    dashboard = FILES[uid]
    assert dashboard["uid"] == uid
    (link,) = dashboard["links"]
    assert (link["keepTime"], link["includeVars"], link["tags"]) == (True, True, dashboard["tags"])
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert numbers == sorted(set(numbers))
    for one, other in combinations((panel["gridPos"] for panel in dashboard["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, f"{one} and {other} overlap"


@pytest.mark.parametrize("uid", sorted(UIDS - {"corevital-runbooks"}))
def test_data_source_model_and_server_can_be_chosen(uid: str) -> None:
    variables = {variable["name"]: variable for variable in FILES[uid]["templating"]["list"]}
    assert {"datasource", "model", "instance"} <= set(variables)
    text = json.dumps(FILES[uid]["panels"])
    assert all(f"${name}" in text or f"${{{name}}}" in text for name in variables), "a variable that is not used"


def test_every_promql_parses(tmp_path: Path) -> None:
    queries = [each.query for each in expressions() if each.language == "promql"]
    marks = [
        mark["expr"]
        for made in FILES.values()
        for mark in made.get("annotations", {}).get("list", ())
        if "expr" in mark
    ]
    assert len(queries) > 120
    assert len(marks) == 9
    assert not unparsable([*queries, *(re.sub(r"\$\w+", ".*", mark) for mark in marks)], tmp_path)
    assert set(queries) >= {re.sub(r"\$\w+", ".*", query) for query in MAY_BE_EMPTY if "[" not in query}
    assert all(series_in(mark) <= known_series() for mark in marks)
    assert unparsable(["sum(rate(corevital_requests_total[5m])"], tmp_path), "nothing is found"


def test_every_series_of_a_panel_exists() -> None:
    known = known_series()
    for each in expressions():
        if each.language == "promql" and "__name__" not in each.query:
            found = series_in(each.query)
            assert found, each
            assert found <= known, each


def test_traceql_names_attributes_that_the_spans_have() -> None:
    from corevital_otel import conventions

    known = {value for value in vars(conventions).values() if isinstance(value, str)}
    known |= {conventions.HEALTH + flag for flag in (*conventions.FLAGS, *conventions.CONDITIONS[:2])} | {
        f"corevital.entropy.{kind}" for kind in ("mean",)
    }
    for each in expressions():
        if each.language == "traceql":
            assert set(re.findall(r"span\.([\w.]+)", each.query)) <= known, each
