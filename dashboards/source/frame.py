"""What the dashboards share: variables, links, time range, and the conversion to JSON."""

import json
from typing import Any, Final

from dashboards.source import states
from dashboards.source.config import CONFIG
from dashboards.source.panels import PROMETHEUS
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.dashboard import (
    AnnotationTarget,
    DashboardCursorSync,
    DashboardLinkType,
    Panel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

TAG: Final = "corevital"
_ALL: Final = VariableOption(text="All", value="$__all", selected=True)


def frame(uid: str, title: str, description: str, *, start: str = "now-3h") -> builders.Dashboard:
    """An empty dashboard with its links to the others; they keep the time and the variables."""
    made = builders.Dashboard(title).uid(uid).description(description).tags([TAG]).time(start, "now").refresh("30s")
    made = made.timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR).editable()
    others = builders.DashboardLink("corevital").type(DashboardLinkType.DASHBOARDS).tags([TAG]).icon("external link")
    return made.link(others.keep_time(True).include_vars(True).as_dropdown(False))


def row(made: builders.Dashboard, title: str, *panels: Builder[Panel]) -> builders.Dashboard:
    """Add a row of these panels to the dashboard."""
    made = made.with_row(builders.Row(title))
    for panel in panels:
        made = made.with_panel(panel)
    return made


def datasource(name: str, kind: str, label: str) -> builders.DatasourceVariable:
    """Variable: the data source of a kind."""
    return builders.DatasourceVariable(name).label(label).type(kind)


def model(*, several: bool = True) -> builders.QueryVariable:
    """Variable: the models."""
    return _values("model", "Model", "corevital_requests_total", "gen_ai_request_model", several=several)


def instance() -> builders.QueryVariable:
    """Variable: the servers."""
    return _values("instance", "Server", f"up{{{CONFIG.targets.selector}}}", "instance", several=True)


def cluster() -> builders.QueryVariable:
    """Variable: the clusters; where no series has the label, there is only *All*."""
    label = CONFIG.labels.cluster
    return _values("cluster", "Cluster", "corevital_requests_total", label, several=True)


def marks() -> list[builders.AnnotationQuery]:
    """Annotations: alerts, deploys and restarts."""
    deploys = builders.AnnotationQuery().name("Deploys from a pipeline").enable(True).icon_color("blue")
    deploys = deploys.datasource(DataSourceRef(type_val="grafana", uid="-- Grafana --")).target(_Tagged())
    return [
        _mark("Alerts", states.ALERT_MARKS, "red", "{{alertname}}", "{{severity}}"),
        _mark(
            "New versions", states.VERSION_MARKS, "purple", "corevital {{version}}", "on an engine {{engine_version}}"
        ),
        _mark("Restarts", states.RESTART_MARKS, "orange", "{{instance}} restarted", "", step="2m"),
        deploys,
    ]


class _Tagged(Builder[Any]):
    """The query for annotations that Grafana keeps and that have the tag ``deploy``."""

    def build(self) -> AnnotationTarget:
        return AnnotationTarget(limit=100, match_any=False, tags=["deploy"], type_val="tags")


def _mark(name: str, expr: str, colour: str, title: str, text: str, step: str = "1m") -> builders.AnnotationQuery:
    query = prometheus.Dataquery().ref_id("A").datasource(PROMETHEUS).expr(expr).legend_format(title)
    mark = builders.AnnotationQuery().name(name).datasource(PROMETHEUS).enable(True).icon_color(colour)
    return mark.expr(expr).target(query).title_format(title).text_format(text).step(step)


def as_json(made: builders.Dashboard) -> str:
    """The dashboard's file: panels numbered in order, for the schema of Grafana 12, which Grafana 11 reads as well."""
    built: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for number, panel in enumerate(built["panels"], start=1):
        panel["id"] = number
    # Defaults of the SDK's that Grafana 11 does not know; the placement would hide links and marks in a menu.
    for part in (*built["links"], *built.get("annotations", {}).get("list", ())):
        part.pop("placement", None)
    for variable in built.get("templating", {}).get("list", ()):
        for name in ("auto", "auto_count", "auto_min", "definition"):
            variable.pop(name, None)
    return json.dumps(built, indent=2, sort_keys=True) + "\n"


def _values(name: str, label: str, metric: str, of: str, *, several: bool) -> builders.QueryVariable:
    query = f"label_values({metric}, {of})"
    made = builders.QueryVariable(name).label(label).datasource(PROMETHEUS)
    made = made.query({"query": query, "refId": name}).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    made = made.sort(VariableSort.ALPHABETICAL_ASC).multi(several)
    return made.include_all(True).all_value(".*").current(_ALL) if several else made
