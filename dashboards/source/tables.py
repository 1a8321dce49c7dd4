"""Tables: servers, models and alerts, which Prometheus answers, and spans, which Tempo finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from dashboards.source import colours
from dashboards.source.panels import BITS, TEMPO, dressed, linked, promql
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import table, tempo
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    DashboardSpecialValueMapOptions,
    DataTransformerConfig,
    DynamicConfigValue,
    SpecialValueMap,
    SpecialValueMatch,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column that a query fills.

    Attributes:
        query: PromQL with a value for each row.
        amber_from, red_from: where its text gets a colour.
        states: texts and colours of its numbers.
        hidden: only its labels are shown.
    """

    query: str
    unit: str = "short"
    decimals: int | None = None
    amber_from: float | None = None
    red_from: float | None = None
    states: Mapping[int, tuple[str, str]] | None = None
    width: int | None = None
    hidden: bool = False


def rows(
    title: str,
    description: str,
    labels: Mapping[str, str],
    columns: Mapping[str, Column],
    *,
    order: Sequence[str],
    last: Mapping[str, str] | None = None,
    hidden: Sequence[str] = (),
    links: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    span: int = 24,
    height: int = 8,
    no_value: str = "-",
) -> table.Panel:
    """A table with one row for each set of labels.

    Args:
        labels: headings of the labels' columns, by label, in order.
        columns: the queries, by heading.
        order: columns to sort by, largest first.
        last: labels whose columns come last.
        hidden: labels without a column.
        links: where a click on a column leads, by heading.
    """
    queries = {column: each.query for column, each in columns.items()}
    panel = _table(no_value).targets(promql(queries, instant=True, form=PromQueryFormat.TABLE))
    if len(columns) > 1:
        panel = panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    values = {f"Value #{ascii_uppercase[at]}" if len(columns) > 1 else "Value": name for at, name in enumerate(columns)}
    unshown = ["Time", *hidden, *(value for value, name in values.items() if columns[name].hidden)]
    placed = [value for value in values if columns[values[value]].states] + list(labels)
    placed += [*(value for value in values if value not in placed), *(last or {})]
    organize = {
        "excludeByName": dict.fromkeys(unshown, True),
        "renameByName": {**labels, **(last or {}), **values},
        "indexByName": {name: at for at, name in enumerate(placed)},
    }
    panel = panel.with_transformation(DataTransformerConfig(id_val="organize", options=organize))
    for name, each in columns.items():
        if not each.hidden:
            panel = panel.override_by_name(name, _shown(each))
    for name, leads in (links or {}).items():
        panel = panel.override_by_name(name, [linked(leads)])
    by: list[Builder[common.TableSortByFieldState]] = [
        common_builders.TableSortByFieldState().display_name(name).desc(True) for name in order
    ]
    return dressed(panel.sort_by(by), title, description, span, height)


def _shown(column: Column) -> list[DynamicConfigValue]:
    made = [DynamicConfigValue(id_val="unit", value=column.unit)]
    if column.decimals is not None:
        made.append(DynamicConfigValue(id_val="decimals", value=column.decimals))
    if column.width is not None:
        made.append(DynamicConfigValue(id_val="custom.width", value=column.width))
    absent = SpecialValueMap(
        options=DashboardSpecialValueMapOptions(
            match=SpecialValueMatch.NULL_AND_NAN, result=ValueMappingResult(text="-", color=colours.GREY, index=9)
        )
    )
    mappings: list[Any] = [absent]
    if column.states is not None:
        mappings.insert(0, colours.named(column.states))
        made.append(
            DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background", "mode": "basic"})
        )
    elif column.red_from is not None or column.amber_from is not None:
        limits = colours.steps(column.amber_from, column.red_from, below="text").build()
        made.append(DynamicConfigValue(id_val="thresholds", value=limits))
        made.append(DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}))
    made.append(DynamicConfigValue(id_val="mappings", value=mappings))
    return made


def traces(
    title: str, description: str, query: str, *, links: Sequence[Mapping[str, Any]], height: int = 9
) -> table.Panel:
    """Spans found by a TraceQL query, newest first; a click on a response's id leads to ``links``."""
    found = tempo.Dataquery().ref_id("A").datasource(TEMPO).query_type("traceql").query(query).limit(50).spss(3)
    found = found.filters([]).table_type(SearchTableType.SPANS)
    panel = _table("none in this time").targets([found]).datasource(TEMPO)
    # Not on spanID: Tempo puts its own link there, and an override would replace it.
    panel = panel.override_by_name("gen_ai.response.id", [linked(links)])
    score = Column(query="", unit="none", decimals=2, amber_from=0.4, red_from=0.7)
    panel = panel.override_by_name("corevital.risk_score", _shown(score))
    panel = panel.override_by_name("corevital.entropy.mean", _shown(Column(query="", unit=BITS, decimals=2)))
    return dressed(panel, title, description, 24, height, datasource=TEMPO)


def _table(no_value: str) -> table.Panel:
    return table.Panel().no_value(no_value).cell_options(common.TableAutoCellOptions()).filterable(True)
