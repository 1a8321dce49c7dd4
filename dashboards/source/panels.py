"""Panels in one style. Each has a title, a description and a unit, and shows \"no traffic\" when empty."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Final, TypeVar

from dashboards.source import colours
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, statetimeline, table, text, timeseries
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue, Threshold
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
TEMPO: Final = DataSourceRef(type_val="tempo", uid="${tempo}")
BITS: Final = "suffix: bits"
SHARE: Final = units.PercentUnit
NO_TRAFFIC: Final = "no traffic"

_Panel = TypeVar("_Panel", stat.Panel, timeseries.Panel, statetimeline.Panel, heatmap.Panel, table.Panel, text.Panel)


def number(
    title: str,
    description: str,
    unit: str,
    queries: Mapping[str, str],
    *,
    span: int = 4,
    amber_from: float | None = None,
    red_from: float | None = None,
    decimals: int | None = None,
    trend: bool = False,
    links: Sequence[Mapping[str, Any]] = (),
) -> stat.Panel:
    """The last value of each query, large; ``queries`` is PromQL by legend.

    Args:
        amber_from, red_from: where a value needs a look, and where it is bad.
        trend: draw its course over the time shown below it.
    """
    mode = common.BigValueGraphMode.AREA if trend else common.BigValueGraphMode.NONE
    panel = stat.Panel().graph_mode(mode).color_mode(common.BigValueColorMode.VALUE)
    panel = panel.text_mode(
        common.BigValueTextMode.AUTO if len(queries) == 1 else common.BigValueTextMode.VALUE_AND_NAME
    )
    panel = panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel = panel.thresholds(colours.steps(amber_from, red_from)).no_value(NO_TRAFFIC)
    for name in queries:
        if name in colours.NAMES:  # zero is well
            coloured = colours.steps(None, None)
            coloured.steps([Threshold(value=None, color=colours.GREEN), Threshold(value=1, color=colours.NAMES[name])])
            panel = panel.override_by_name(name, [DynamicConfigValue(id_val="thresholds", value=coloured.build())])
    if links:
        panel = panel.override_by_regexp(".*", [linked(links)])
    if decimals is not None:
        panel = panel.decimals(decimals)
    return dressed(panel, title, description, span, 4).unit(unit).targets(promql(queries, instant=not trend))


def timeline(
    title: str,
    description: str,
    queries: Mapping[str, str],
    links: Sequence[Mapping[str, Any]],
    *,
    span: int,
    height: int,
) -> statetimeline.Panel:
    """States over time, one row a series, as :data:`colours.STATES` names and colours them."""
    panel = statetimeline.Panel().show_value(common.VisibilityMode.NEVER).row_height(0.8).merge_values(True)
    legend = common_builders.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST)
    panel = panel.legend(legend.placement(common.LegendPlacement.BOTTOM).show_legend(True))
    panel = panel.tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.SINGLE))
    panel = panel.mappings([colours.named(colours.STATES)]).thresholds(colours.steps(None, None)).fill_opacity(85)
    panel = panel.line_width(0).no_value(NO_TRAFFIC).override_by_regexp(".*", [linked(links)])
    return dressed(panel, title, description, span, height).unit("none").targets(promql(queries))


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
    links: Sequence[Mapping[str, Any]] = (),
) -> timeseries.Panel:
    """Queries over time.

    Args:
        queries: PromQL by legend. A legend that ends in ``before`` is drawn dashed.
        limits: values to draw a line at.
        links: where a click on a point leads, by title and address.
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
        lines = [Threshold(value=None, color="transparent"), *(Threshold(value=at, color=colours.RED) for at in limits)]
        panel = panel.thresholds(colours.steps(None, None).steps(lines)).thresholds_style(style)
    dashed = DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]})
    panel = panel.override_by_regexp(".*before$", [dashed])
    for name, colour in colours.fixed(queries):
        panel = panel.override_by_regexp(name, [colour])
    if links:
        panel = panel.override_by_regexp(".*", [linked(links)])
    return dressed(panel, title, description, span, 8).unit(unit).targets(promql(queries))


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
    query = promql_query("A", "{{le}}", buckets).range().format(PromQueryFormat.HEATMAP)
    return dressed(panel, title, description, 12, 8).targets([query])


def page(title: str, description: str, markdown: str) -> text.Panel:
    """Text."""
    return dressed(text.Panel().mode(TextMode.MARKDOWN).content(markdown), title, description, 24, 16, datasource=None)


def dressed(
    panel: _Panel, title: str, description: str, span: int, height: int, datasource: DataSourceRef | None = PROMETHEUS
) -> _Panel:
    """Give a panel what each of ours has."""
    panel = panel.title(title).description(description).span(span).height(height)
    return panel if datasource is None else panel.datasource(datasource)


def promql_query(ref_id: str, legend: str, expr: str) -> prometheus.Dataquery:
    """A PromQL query by the letter that Grafana calls it."""
    return prometheus.Dataquery().ref_id(ref_id).datasource(PROMETHEUS).expr(expr).legend_format(legend)


def promql(
    queries: Mapping[str, str], *, instant: bool = False, form: PromQueryFormat = PromQueryFormat.TIME_SERIES
) -> list[Any]:
    """Queries by their legends."""
    made = []
    for ref_id, (legend, expr) in zip(ascii_uppercase, queries.items(), strict=False):
        query = promql_query(ref_id, legend or "__auto", expr).format(form)
        # Exemplars lead from a quantile to a trace; without them in Prometheus the graph is the same.
        made.append(query.instant() if instant else query.range().exemplar("histogram_quantile" in expr))
    return made


def linked(links: Sequence[Mapping[str, Any]]) -> DynamicConfigValue:
    """Where a click on a value leads."""
    return DynamicConfigValue(id_val="links", value=[dict(link) for link in links])
