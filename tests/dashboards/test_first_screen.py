"""The first screen answers its three questions, colours are fixed, and links lead to what exists."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from dashboards.source import traceql
from dashboards.source.config import CONFIG
from dashboards.source.states import LINES
from tests.dashboards.tools import DASHBOARDS, FILES

GREY = "#8e8e8e"
Json = dict[str, Any]
OF_GRAFANA = {"__rate_interval", "__range", "__url_time_range", "__from", "__to", "__value", "__data"}
FLEET = FILES["corevital-fleet"]
DRAWN = [uid for uid in FILES if uid != "corevital-runbooks"]


def variables(uid: str) -> set[str]:
    return {variable["name"] for variable in FILES[uid]["templating"].get("list", ())}


def panel(title: str) -> Json:
    (found,) = [panel for panel in FLEET["panels"] if panel["title"] == title]
    return found


def overrides(panel: Json) -> dict[str, Json]:
    """Settings by the name of a field, for those with one name."""
    found: dict[str, Json] = {}
    for each in panel["fieldConfig"]["overrides"]:
        if each["matcher"]["id"] == "byName" or re.fullmatch(r"\w+", each["matcher"]["options"]):
            found.setdefault(each["matcher"]["options"], {}).update(
                {one["id"]: one["value"] for one in each["properties"]}
            )
    return found


def links(uid: str) -> list[tuple[str, Json]]:
    """Each link of each panel, with the panel's title."""
    return [
        (panel["title"], link)
        for panel in FILES[uid]["panels"]
        for override in panel.get("fieldConfig", {}).get("overrides", ())
        for setting in override["properties"]
        if setting["id"] == "links"
        for link in setting["value"]
    ]


def test_the_first_row_fits_on_a_screen_and_has_what_it_should() -> None:
    start, end = [panel["gridPos"]["y"] for panel in FLEET["panels"] if panel["type"] == "row"][:2]
    first = [panel for panel in FLEET["panels"] if start < panel["gridPos"]["y"] < end]
    assert [panel["type"] for panel in first] == ["stat"] * 6 + ["state-timeline", "table", "table", "table"]
    assert panel("Servers, the worst first")["gridPos"]["y"] + 9 <= 25  # rows of 38 pixels: a screen of 1080
    assert all(panel["options"]["graphMode"] == "area" for panel in first if panel["type"] == "stat")


def test_alerts_have_a_start_and_the_worst_comes_first() -> None:
    alerts = panel("What fires")
    assert [by["displayName"] for by in alerts["options"]["sortBy"]] == ["Severity", "Since"]
    assert overrides(alerts)["Since"]["unit"].startswith("dateTime")
    assert "ALERTS_FOR_STATE" in alerts["targets"][1]["expr"]


def test_servers_are_sorted_by_how_bad_they_are() -> None:
    servers = panel("Servers, the worst first")
    assert [(by["displayName"], by["desc"]) for by in servers["options"]["sortBy"]] == [
        ("State", True),
        ("Faulty", True),
        ("High risk", True),
        ("HTTP 5xx", True),
        ("First token, p95", True),
    ]
    # Grafana merges columns by the labels that all have: each must have a row for every server.
    state = servers["targets"][0]["expr"].removeprefix("max by (cluster, job, instance) (").removesuffix(")")
    assert all(target["expr"].endswith(f"NaN * {state}") for target in servers["targets"][1:])


@pytest.mark.parametrize("title", ["Since when", "What fires", "Servers, the worst first", "Models, the worst first"])
def test_states_have_fixed_colours(title: str) -> None:
    text = json.dumps(panel(title))
    assert '"text": "critical"' in text
    for mapping in re.findall(r'\{"color": "[^"]*", "index": \d, "text": "[^"]*"\}', text):
        found = json.loads(mapping)
        expected = {"critical": "red", "warning": "orange", "no alert": "green", "info": "blue"}
        assert found["color"] == expected.get(found["text"], GREY)


def test_high_risk_is_red_wherever_levels_are_drawn() -> None:
    drawn = [
        overrides(panel)
        for uid in DRAWN
        for panel in FILES[uid]["panels"]
        if any("by (risk_level)" in target.get("expr", "") for target in panel.get("targets", ()))
    ]
    assert drawn
    for found in drawn:
        chosen = {name: settings["color"]["fixedColor"] for name, settings in found.items()}
        assert chosen == {"high": "red", "medium": "orange", "low": "green", "unknown": GREY}


@pytest.mark.parametrize("uid", DRAWN)
def test_lines_by_server_are_a_few_of_a_thousand(uid: str) -> None:
    for found in FILES[uid]["panels"]:
        for target in found.get("targets", ()):
            if "{{instance}}" in target.get("legendFormat", ""):
                (count,) = re.findall(r"topk\((\d+), ", target["expr"])
                assert int(count) <= LINES + 4
                assert "@ end()" in target["expr"], "another choice at each step draws them all"


@pytest.mark.parametrize("uid", DRAWN)
def test_every_variable_that_is_used_is_defined(uid: str) -> None:
    parts = [FILES[uid]["panels"], FILES[uid].get("annotations"), FILES[uid]["templating"]]
    text = unquote(json.dumps(parts))
    used = {one or other for one, other in re.findall(r"\$(?:\{(\w+)|(\w+))", text)}
    assert used - OF_GRAFANA - {"__all"} <= variables(uid)


@pytest.mark.parametrize("uid", DRAWN)
def test_links_lead_to_dashboards_and_variables_that_exist(uid: str) -> None:
    for title, link in links(uid):
        address = urlsplit(link["url"])
        if address.path.startswith("/d/"):
            target = address.path.removeprefix("/d/")
            assert target in FILES, title
            assert set(re.findall(r"var-(\w+)=", address.query)) <= variables(target), title
            if target != "corevital-runbooks":
                assert "${__url_time_range}" in link["url"], title
        else:
            assert address.path == "/explore" or link["url"].startswith(("${hub}/", "${langfuse}/")), title


@pytest.mark.parametrize(
    "title", ["High risk", "Fault budget used, 1 h", "Since when", "Flags", "Risk levels", "Fault budget"]
)
def test_from_a_panel_to_traces_at_risk_in_two_clicks(title: str) -> None:
    leads = [link for found, link in links("corevital-fleet") if found == title]
    assert [link["url"].split("?")[0] for link in leads] == ["/d/corevital-requests", "/explore"]
    (panes,) = parse_qs(urlsplit(leads[1]["url"]).query)["panes"]
    pane = json.loads(panes)["a"]
    assert pane["queries"][0]["query"] == traceql.at_risk("${model:pipe}")
    assert (pane["datasource"], pane["queries"][0]["queryType"]) == ("${tempo}", "traceql")
    assert pane["range"] == {"from": "${__from}", "to": "${__to}"}


def test_from_a_trace_to_its_tokens() -> None:
    from corevital_otel.http import application

    tables = {title for title, link in links("corevital-requests") if "/corevital/v1/requests/" in link["url"]}
    assert len(tables) == 7
    link = next(link for _, link in links("corevital-requests") if link["url"].startswith("${hub}"))
    assert link["title"] == "Its tokens: corevital show ${__value.raw}"
    assert '"/corevital/v1/requests/{id' in (DASHBOARDS.parent / "otel/corevital_otel/http/reports.py").read_text()
    assert application


def test_a_tenant_is_a_tag_of_spans_and_no_label() -> None:
    assert f'span.corevital.tags = "{CONFIG.labels.tenant}$tenant"' in traceql.TENANT
    assert "tenant" not in json.dumps([panel.get("targets") for panel in FLEET["panels"]])
    assert "tenant" in variables("corevital-requests")


def test_marks_are_alerts_versions_restarts_and_deploys() -> None:
    for uid in ("corevital-fleet", "corevital-model", "corevital-itself"):
        names = [mark["name"] for mark in FILES[uid]["annotations"]["list"]]
        assert names == ["Alerts", "New versions", "Restarts", "Deploys from a pipeline"]
        assert FILES[uid]["annotations"]["list"][-1]["target"]["tags"] == ["deploy"]
