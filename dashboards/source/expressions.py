"""Every query of every panel, with the dashboards' variables filled in: to run it against a real Prometheus.

``python -m dashboards.source.expressions`` prints them, one a line: dashboard, panel, language, query.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dashboards.source import queries, states

MAY_BE_EMPTY: Final = queries.MAY_BE_EMPTY | states.MAY_BE_EMPTY
FOLDER: Final = Path(__file__).parents[1] / "grafana"
DEFAULTS: Final = {
    "model": ".*",
    "instance": ".*",
    "cluster": ".*",
    "compare": "1d",
    "risk": "0.7",
    "tenant": "acme",
    "__rate_interval": "1m",
    "__range": "5m",
}
"""Default values of variables; the last two are Grafana's."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One query of one panel.

    Attributes:
        dashboard: its uid.
        language: ``promql``, or ``traceql`` for Tempo.
        query: with the variables filled in.
        may_be_empty: without data on a server under traffic this is right, such as a comparison with the day before.
    """

    dashboard: str
    panel: str
    language: Literal["promql", "traceql"]
    query: str
    may_be_empty: bool


def expressions(folder: Path = FOLDER, **variables: str) -> list[Expression]:
    """All queries of the committed dashboards.

    Args:
        folder: the dashboards'.
        variables: values in place of :data:`DEFAULTS`.
    """
    values = DEFAULTS | variables
    found = []
    for path in sorted(folder.glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel, language, query in _queries(dashboard):
            filled = re.sub(r"\$\{?(\w+)\}?", lambda name: values[name[1]], query)
            may_be_empty = query in MAY_BE_EMPTY or "$compare" in query
            found.append(Expression(dashboard["uid"], panel, language, filled, may_be_empty))
    return found


def _queries(dashboard: dict[str, object]) -> Iterator[tuple[str, Literal["promql", "traceql"], str]]:
    panels: list[dict] = dashboard["panels"]  # type: ignore[assignment, type-arg]
    for panel in panels:
        for target in panel.get("targets", ()):
            yield (
                (panel["title"], "promql", target["expr"])
                if "expr" in target
                else (panel["title"], "traceql", target["query"])
            )


if __name__ == "__main__":
    for each in expressions():
        sys.stdout.write(f"{each.dashboard}\t{each.panel}\t{each.language}\t{each.query}\n")
