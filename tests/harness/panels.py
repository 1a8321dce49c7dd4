"""The committed dashboards as Grafana reads them: each panel with its queries, its variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.harness.processes import ROOT

FOLDER = ROOT / "dashboards/grafana"


@dataclass(frozen=True)
class Panel:
    """A panel and its queries to Prometheus.

    Attributes:
        dashboard: its dashboard's uid.
        kind: Grafana's type: ``timeseries``, ``stat``, ``table``, ….
        unit: Grafana's unit.
        place: column, row, width and height on a grid of 24 columns.
        queries: PromQL and the legend's template.
    """

    dashboard: str
    title: str
    kind: str
    unit: str
    place: tuple[int, int, int, int]
    queries: list[tuple[str, str]]


def _each(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _each(panel.get("panels", []))  # of a collapsed row


def panels(variables: Mapping[str, str]) -> list[Panel]:
    """Every panel with a query to Prometheus; variables by their names, without ``$``."""
    found = []
    for file in sorted(FOLDER.glob("*.json")):
        dashboard = json.loads(file.read_text())
        for panel in _each(dashboard["panels"]):
            queries = [
                (_filled(target["expr"], variables), _filled(target.get("legendFormat", ""), variables))
                for target in panel.get("targets", [])
                if "expr" in target
            ]
            if queries:
                grid, unit = panel["gridPos"], panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "")
                place = (grid["x"], grid["y"], grid["w"], grid["h"])
                found.append(Panel(dashboard["uid"], panel["title"], panel["type"], unit, place, queries))
    return found


def _filled(expression: str, variables: Mapping[str, str]) -> str:
    """
    Raises:
        KeyError: a variable without a value.
    """
    return re.sub(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))", lambda found: variables[found[1] or found[2]], expression)


def named(legend: str, labels: Mapping[str, str]) -> str:
    """A series' name by its legend's template."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), legend)
