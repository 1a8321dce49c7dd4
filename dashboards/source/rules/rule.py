"""A rule, a group of rules, and the files they become."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import yaml
from dashboards.source import pages
from dashboards.source.config import Config

MODEL: Final = "gen_ai_request_model"
Severity = Literal["critical", "warning", "info", "none"]


@dataclass(frozen=True, slots=True)
class Record:
    """A recording rule."""

    record: str
    expr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alerting rule.

    Attributes:
        severity: ``critical``: act now. ``warning``: act within the working day. ``info``: no action needed.
            ``none``: a machine waits for it.
        waits: how long the condition must hold.
        summary: one line.
        description: the cluster is put before it.
        dashboard: uid of the dashboard that a person opens.
        shows: labels of the alert that the dashboard's variables take, ``model`` and ``instance``.
    """

    name: str
    expr: str
    severity: Severity
    waits: str = ""
    summary: str
    description: str
    dashboard: str = pages.MODEL
    shows: tuple[Literal["model", "instance"], ...] = ("model",)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated together, in order; with a separate interval where one is given."""

    name: str
    rules: Sequence[Record | Alert]
    interval: str = ""


class Scope:
    """Labels to aggregate by.

    Attributes:
        model: a model in a cluster.
        server: one server.
        both: a model on a server.
        cluster: the cluster alone.
        job: a job in a cluster.
    """

    def __init__(self, config: Config) -> None:
        cluster, server = config.labels.cluster, config.labels.server
        self.cluster = cluster
        self.model = f"{cluster}, {MODEL}"
        self.server = ", ".join((cluster, *server))
        self.both = f"{self.server}, {MODEL}"
        self.job = f"{cluster}, job"


def increase(metric: str, window: str, by: str, matchers: str = "") -> str:
    """What counters gained in a window, summed."""
    selector = f"{metric}{{{matchers}}}" if matchers else metric
    return f"sum by ({by}) (increase({selector}[{window}]))"


def of(part: str, whole: str) -> str:
    """A share; no value where there is nothing to share."""
    return f"{part} / ({whole} > 0)"


def lines(first: str, *further: str) -> str:
    """An expression whose further operands stand on separate lines."""
    return "\n".join((first, *(f"  {line}" for line in further))) + "\n"


def as_yaml(groups: Sequence[Group], config: Config, head: str) -> str:
    """A rule file of Prometheus."""
    return head + _dump({"groups": as_groups(groups, config)})


def as_custom_resource(groups: Sequence[Group], config: Config, head: str) -> str:
    """A PrometheusRule for the Prometheus Operator."""
    named = {"name": "corevital", "labels": {"app.kubernetes.io/name": "corevital", "role": "alert-rules"}}
    made = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": named}
    return head + _dump(made | {"spec": {"groups": as_groups(groups, config)}})


def as_groups(groups: Sequence[Group], config: Config) -> list[dict[str, Any]]:
    """The groups as Prometheus reads them."""
    return [
        {"name": group.name}
        | ({"interval": group.interval} if group.interval else {})
        | {"rules": [_as_rule(rule, config) for rule in group.rules]}
        for group in groups
    ]


def _as_rule(rule: Record | Alert, config: Config) -> dict[str, Any]:
    if isinstance(rule, Record):
        return {"record": rule.record, "expr": rule.expr}
    cluster = config.labels.cluster
    values = {"model": MODEL, "instance": "instance"}
    variables = "&".join(f"var-{name}={{{{ $labels.{values[name]} | urlquery }}}}" for name in rule.shows)
    address = f"{config.urls.grafana}/d/{rule.dashboard}{'?' if variables else ''}{variables}"
    if variables:
        address += f"{{{{ with $labels.{cluster} }}}}&var-cluster={{{{ . | urlquery }}}}{{{{ end }}}}"
    page = f"{config.urls.grafana}/d/{pages.RUNBOOKS}?viewPanel={pages.ORDER.index(rule.name) + 1}"
    return (
        {"alert": rule.name, "expr": rule.expr}
        | ({"for": rule.waits} if rule.waits else {})
        | {
            "labels": {"severity": rule.severity, **rule.labels},
            "annotations": {
                "summary": rule.summary,
                "description": f"{{{{ with $labels.{cluster} }}}}Cluster {{{{ . }}}}: {{{{ end }}}}{rule.description}",
                "runbook_url": page,
                "dashboard_url": address,
            },
        }
    )


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # Any to mypy
    """Text of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _dump(made: dict[str, Any]) -> str:
    return str(yaml.dump(made, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True))
