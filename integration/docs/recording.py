"""What a real Prometheus answers to every query of the dashboards' panels and marks, as Grafana would ask it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from integration.harness.alerting import shortened_query
from integration.harness.prometheus import Prometheus
from tests.harness.processes import ROOT

FOLDER = ROOT / "dashboards/grafana"
Json = dict[str, Any]


def filled(expression: str, variables: Mapping[str, str]) -> str:
    """An expression with the dashboard's variables filled in.

    Raises:
        KeyError: a variable without a value.
    """
    return re.sub(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))", lambda found: variables[found[1] or found[2]], expression)


def dashboards() -> dict[str, Json]:
    """The committed dashboards, by uid."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def each_panel(dashboard: Json) -> Iterator[Json]:
    """Every panel, without the headings of rows."""
    yield from (panel for panel in dashboard["panels"] if panel["type"] != "row")


def record(
    prometheus: Prometheus, uid: str, start: float, at: float, variables: Mapping[str, str], shown: Mapping[str, str]
) -> Json:
    """Answers for one dashboard: by panel and query, and of its marks.

    Durations in queries are shortened as those of the rules are; the values of ``variables`` are not. A panel's
    instant queries are asked for the time ``at``, the others from ``start`` to there. ``shown`` are the variables of
    legends.
    """
    variables = {"__range": f"{at - start:.0f}s", **variables}

    def asked(expression: str, instant: bool) -> list[Any]:
        query = filled(shortened_query(expression), variables)
        found = prometheus.range(query, at if instant else start, at, 1.0)
        return [(labels, points) for labels, points in found]

    dashboard = dashboards()[uid]
    panels = {
        str(panel["id"]): {
            target["refId"]: {
                "legend": filled(target.get("legendFormat", ""), shown),
                "series": asked(target["expr"], bool(target.get("instant"))),
            }
            for target in panel.get("targets", ())
            if "expr" in target
        }
        for panel in each_panel(dashboard)
    }
    marks = {
        mark["name"]: asked(mark["expr"], False)
        for mark in dashboard.get("annotations", {}).get("list", ())
        if "expr" in mark
    }
    return {"panels": panels, "marks": marks}


def named(legend: str, labels: Mapping[str, str]) -> str:
    """A series' name by its legend's template."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), legend)
