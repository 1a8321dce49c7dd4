"""Generates the rules in ``dashboards/prometheus``, and the same for the Prometheus Operator."""

from typing import Final

from dashboards.source.config import Config
from dashboards.source.rules import budgets, model, recordings, servers, stack, watching
from dashboards.source.rules.rule import Group, as_custom_resource, as_yaml

_HEAD: Final = "# Made by `python -m dashboards.source` from dashboards/config.toml: change it there.\n"
_TEXTS: Final = {
    "recording": "# Recording rules. `model` is the label gen_ai_request_model, `instance` a server; both "
    "within a cluster.\n",
    "slo": "# Service level objectives and their error budgets' burn rates.\n",
    "alerts": "# Alerts. critical: act now. warning: act within the working day. info: no action needed.\n",
    "stack": "# Alerts about what watches: Collector, Tempo, Prometheus, Alertmanager, Grafana.\n",
}


def groups(config: Config) -> dict[str, list[Group]]:
    """The groups of each file, in the order of evaluation."""
    return {
        "recording": [*recordings.groups(config), *servers.groups(config)],
        "slo": budgets.groups(config),
        "alerts": [*model.groups(config), *watching.groups(config)],
        "stack": stack.groups(config),
    }


def files(config: Config) -> dict[str, str]:
    """Each rule file's text by its name."""
    return {f"{name}.rules.yml": as_yaml(found, config, _HEAD + _TEXTS[name]) for name, found in groups(config).items()}


def custom_resource(config: Config) -> str:
    """All of them as one PrometheusRule."""
    every = [group for found in groups(config).values() for group in found]
    return as_custom_resource(every, config, _HEAD)
