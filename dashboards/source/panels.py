"""Panels in one style. Each has a title, a description and a unit, and shows \"no traffic\" when empty."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Final, TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, table, tempo, text, timeseries
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType
from grafana_foundation_sdk.models.text import TextMode

PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
TEMPO: Final = DataSourceRef(type_val="tempo", uid="${tempo}")
BITS: Final = "suffix: bits"
SHARE: Final = units.PercentUnit
NO_TRAFFIC: Final = "no traffic"

_Panel = TypeVar("_Panel", stat.Panel, timeseries.Panel, heatmap.Panel, table.Panel, text.Panel)


def number(
    title: str,
    description: str,
    unit: str,
    queries: Mapping[str, str],
    *,
    span: int = 4,
    red_from: float | None = None,
    decimals: int | None = None,
) -> stat.Panel:
    """The last value of each query, large; ``queries`` is PromQL by legend."""
    panel = stat.Panel().graph_mode(common.BigValueGraphMode.NONE).color_mode(common.BigValueColorMode.VALUE)
    panel = panel.text_mode(
        common.BigValueTextMode.AUTO if len(queries) == 1 else common.BigValueTextMode.VALUE_AND_NAME
    )
    panel = panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel = panel.thresholds(_thresholds("green", () if red_from is None else (red_from,))).no_value(NO_TRAFFIC)
    if decimals is not None:
        panel = panel.decimals(decimals)
    return _dressed(panel, title, description, span, 4).unit(unit).targets(_promql(queries, instant=True))


def graph(
    title: str,
    description: str,
    unit: str,
    queries: Mapping[str, str],
    *,
    span: int = 12,
    stacked: common.StackingMode | None = None,
    limits: Sequence[float] = (),
    no_value: str = NO_TRAFFIC,
) -> timeseries.Panel:
    """Queries over time.

    Args:
        queries: PromQL by legend. A legend that ends in ``before`` is drawn dashed.
        limits: values to draw a line at.
    """
    panel = timeseries.Panel().line_width(1).fill_opacity(10).show_points(common.VisibilityMode.AUTO).min(0)
    legend = common_builders.VizLegendOptions().display_mode(common.LegendDisplayMode.TABLE)
    legend = legend.placement(common.LegendPlacement.BOTTOM).show_legend(True).calcs(["lastNotNull", "max"])
    tooltip = (
        common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    panel = panel.legend(legend).tooltip(tooltip).no_value(no_value)
    if stacked is not None:
        panel = panel.stacking(common_builders.StackingConfig().mode(stacked).group("A")).fill_opacity(60)
    if limits:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds("transparent", limits)).thresholds_style(style)
    dashed = DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]})
    panel = panel.override_by_regexp(".*before$", [dashed])
    return _dressed(panel, title, description, span, 8).unit(unit).targets(_promql(queries))


def distribution(title: str, description: str, unit: str, buckets: str) -> heatmap.Panel:
    """A histogram over time: darker is more."""
    color = (
        heatmap.HeatmapColorOptions()
        .mode(HeatmapColorMode.SCHEME)
        .scheme("Blues")
        .reverse(False)
        .steps(64)
        .fill("blue")
    )
    color = color.scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5)
    panel = heatmap.Panel().calculate(False).color(color).cell_gap(1).no_value(NO_TRAFFIC).show_legend()
    panel = panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT))
    panel = panel.tooltip(heatmap.HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).y_histogram(True))
    query = _query("A", "{{le}}", buckets).range().format(PromQueryFormat.HEATMAP)
    return _dressed(panel, title, description, 12, 8).targets([query])


def by_label(
    title: str,
    description: str,
    label: tuple[str, str],
    columns: Mapping[str, tuple[str, str]],
    link: tuple[str, str],
) -> table.Panel:
    """A table with one row per value of a label.

    Args:
        label: its name, and the heading of its column.
        columns: PromQL and unit by heading; each query gives one value a row.
        link: title and address that a click on the label opens.
    """
    name, heading = label
    queries = {column: query for column, (query, _) in columns.items()}
    panel = _table("-").targets(_promql(queries, instant=True, form=PromQueryFormat.TABLE))
    renamed = {f"Value #{ascii_uppercase[at]}": column for at, column in enumerate(columns)}
    panel = panel.with_transformation(
        DataTransformerConfig(id_val="joinByField", options={"byField": name, "mode": "outer"})
    )
    excluded = {f"Time {at}": True for at in range(1, len(columns) + 1)}
    organize = {"excludeByName": {"Time": True, **excluded}, "renameByName": {name: heading, **renamed}}
    panel = panel.with_transformation(DataTransformerConfig(id_val="organize", options=organize))
    for column, (_, unit) in columns.items():
        panel = panel.override_by_name(column, [DynamicConfigValue(id_val="unit", value=unit)])
    panel = panel.override_by_name(heading, [_links({"title": link[0], "url": link[1]})])
    return _dressed(panel, title, description, 24, 8)


def alerts(title: str, description: str, query: str) -> table.Panel:
    """The firing alerts, one per row."""
    panel = _table("nothing fires").targets(_promql({"": query}, instant=True, form=PromQueryFormat.TABLE))
    options = {"excludeByName": {"Time": True, "Value": True}, "renameByName": {"gen_ai_request_model": "model"}}
    panel = panel.with_transformation(DataTransformerConfig(id_val="organize", options=options))
    return _dressed(panel, title, description, 24, 6)


def traces(title: str, description: str, query: str, *, langfuse: str) -> table.Panel:
    """Spans found by a TraceQL query, newest first, each with links to Tempo and Langfuse."""
    found = tempo.Dataquery().ref_id("A").datasource(TEMPO).query_type("traceql").query(query).limit(50).spss(3)
    found = found.filters([]).table_type(SearchTableType.SPANS)
    panel = _table("none in this time").targets([found]).datasource(TEMPO)
    # Not on spanID: Tempo puts its own link there, and an override would replace it.
    in_langfuse = {"title": "Trace in Langfuse", "url": langfuse, "targetBlank": True}
    panel = panel.override_by_name("gen_ai.response.id", [_links(in_langfuse)])
    for column, unit in (("corevital.risk_score", "none"), ("corevital.entropy.mean", BITS)):
        shown = [DynamicConfigValue(id_val="unit", value=unit), DynamicConfigValue(id_val="decimals", value=2)]
        panel = panel.override_by_name(column, shown)
    return _dressed(panel, title, description, 24, 9, datasource=TEMPO)


def page(title: str, description: str, markdown: str) -> text.Panel:
    """Text."""
    return _dressed(text.Panel().mode(TextMode.MARKDOWN).content(markdown), title, description, 24, 16, datasource=None)


def _table(no_value: str) -> table.Panel:
    return table.Panel().no_value(no_value).cell_options(common.TableAutoCellOptions()).filterable(True)


def _dressed(
    panel: _Panel, title: str, description: str, span: int, height: int, datasource: DataSourceRef | None = PROMETHEUS
) -> _Panel:
    panel = panel.title(title).description(description).span(span).height(height)
    return panel if datasource is None else panel.datasource(datasource)


def _query(ref_id: str, legend: str, expr: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(ref_id).datasource(PROMETHEUS).expr(expr).legend_format(legend)


def _promql(
    queries: Mapping[str, str], *, instant: bool = False, form: PromQueryFormat = PromQueryFormat.TIME_SERIES
) -> list[Any]:
    made = []
    for ref_id, (legend, expr) in zip(ascii_uppercase, queries.items(), strict=False):
        query = _query(ref_id, legend or "__auto", expr).format(form)
        # Exemplars lead from a quantile to a trace; without them in Prometheus the graph is the same.
        made.append(query.instant() if instant else query.range().exemplar("histogram_quantile" in expr))
    return made


def _links(*links: Mapping[str, Any]) -> DynamicConfigValue:
    return DynamicConfigValue(id_val="links", value=[dict(link) for link in links])


def _thresholds(below: str, red_from: Sequence[float]) -> builders.ThresholdsConfig:
    steps = [Threshold(value=None, color=below), *(Threshold(value=at, color="red") for at in red_from)]
    return builders.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
