"""What the chart makes for operators: Prometheus' and OpenTelemetry's resources, and dashboards as ConfigMaps."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards.source.chart import alertmanager, merged
from dashboards.source.config import load, load_kubernetes
from dashboards.source.expressions import expressions
from tests.dashboards.chart_cases import CHART, KUBERNETES, every, kind
from tests.dashboards.tools import ROOT, unparsable
from tests.harness.chart import asked

CONFIG, COMPOSE = load_kubernetes(), load()


@every
def test_prometheus_takes_each_job_for_what_it_is(manifests: list[dict[str, Any]]) -> None:
    """The operator names a job after namespace and PodMonitor."""
    targets = CONFIG.targets
    names = [monitor["metadata"]["name"] for monitor in kind(manifests, "PodMonitor")]
    for namespace, name in itertools.product(("prod", "vllm", "frontend", "llm-gateway", "vllm-frontend"), names):
        job = f"{namespace}/{name}"
        is_server = bool(re.fullmatch(targets.server, job)) and not re.fullmatch(targets.not_server, job)
        is_collector = bool(re.fullmatch(targets.collector, job))
        is_frontend = bool(re.fullmatch(targets.frontend, job))
        assert is_server == ("vllm" in name and not name.endswith("frontend")), job
        assert is_frontend == name.endswith("vllm-frontend"), job
        assert is_collector == name.endswith("collector"), job


COLLECTOR, SDK = "OpenTelemetryCollector", "Instrumentation"
BREAKS: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "an unknown field": (COLLECTOR, lambda spec: spec.update(replica=1), "'replica' was unexpected"),
    "one below": (COLLECTOR, lambda spec: spec["volumeClaimTemplates"][0]["spec"].update(x=1), "'x' was unexpected"),
    "another mode": (COLLECTOR, lambda spec: spec.update(mode="agent"), "'agent' is not one of"),
    "a number for a text": (COLLECTOR, lambda spec: spec["env"][0].update(value=10), "10 is not of type"),
    "no pipelines": (COLLECTOR, lambda spec: spec["config"].pop("service"), "'service' is a required property"),
    "an unknown sampler": (SDK, lambda spec: spec.update(sampler={"type": "all"}), "'all' is not one of"),
    "an unknown propagator": (SDK, lambda spec: spec["propagators"].append("w3c"), "'w3c' is not one of"),
}
"""Changes of the ``spec`` of a kind, and what is found."""


@pytest.mark.parametrize("case", ["everything"])
def test_what_the_opentelemetry_operator_would_refuse_is_found(manifests: list[dict[str, Any]]) -> None:
    """An API server drops an unknown field in silence; here it is an error."""
    broken = {}
    for name, (of, change, _) in BREAKS.items():
        broken[name] = copy.deepcopy(kind(manifests, of))
        change(broken[name][0]["spec"])
    other = copy.deepcopy(kind(manifests, COLLECTOR))
    other[0]["apiVersion"] = "opentelemetry.io/v1alpha1"
    answers = asked(validate=broken | {"another version": other})
    expected = {name: text for name, (_, _, text) in BREAKS.items()}
    for name, text in (expected | {"another version": "'opentelemetry.io/v1beta1' was expected"}).items():
        (problem,) = answers[name]["problems"]
        assert text in problem


@pytest.mark.parametrize("case", ["everything", "gpu"])
def test_the_collector_is_that_of_the_stack(manifests: list[dict[str, Any]]) -> None:
    (found,) = kind(manifests, "OpenTelemetryCollector")
    folder = ROOT / "dashboards/collector"
    both = [yaml.safe_load((folder / name).read_text()) for name in ("collector.yaml", "to-tempo.yaml")]
    stack = merged(*both)
    config = found["spec"]["config"]
    stack["exporters"]["otlp_grpc/tempo"]["endpoint"] = "tempo.monitoring:4317"
    assert config == stack
    set_here = {variable["name"] for variable in found["spec"]["env"]}
    assert set(re.findall(r"\$\{env:(\w+)", json.dumps(config))) <= set_here
    mounted = [mount["mountPath"] for mount in found["spec"]["volumeMounts"]]
    assert any(config["extensions"]["file_storage"]["directory"].startswith(path) for path in mounted)


@pytest.mark.parametrize("case", ["everything", "nodes"])
def test_the_instrumentation_has_an_address(manifests: list[dict[str, Any]]) -> None:
    (found,) = kind(manifests, "Instrumentation")
    assert found["spec"]["exporter"]["endpoint"].startswith("http")


@pytest.mark.parametrize("case", ["gpu", "mail only", "pages only"])
def test_routes_are_those_of_the_stack(manifests: list[dict[str, Any]]) -> None:
    (found,) = kind(manifests, "AlertmanagerConfig")
    stack = yaml.safe_load((ROOT / "dashboards/alertmanager/alertmanager.yml").read_text())
    expected = alertmanager(stack)
    spec = found["spec"]
    assert spec["inhibitRules"] == expected["inhibitRules"]
    assert spec["route"]["groupBy"] == stack["route"]["group_by"]
    receivers = {receiver["name"] for receiver in spec["receivers"]}
    used = {spec["route"]["receiver"], *(route["receiver"] for route in spec["route"]["routes"])}
    assert used == receivers
    waits = {route["matchers"][0]["value"]: route.get("groupWait") for route in spec["route"]["routes"]}
    assert waits["critical"] == "10s"


def titles(board: dict[str, Any]) -> list[str]:
    return [board["title"], *(panel["title"] for panel in board["panels"])]


@pytest.mark.parametrize("case", ["defaults"])
def test_rules_and_dashboards_are_those_of_the_stack(manifests: list[dict[str, Any]]) -> None:
    (rule,) = kind(manifests, "PrometheusRule")
    custom = yaml.safe_load((KUBERNETES / "prometheusrule.yaml").read_text())
    assert rule["spec"] == custom["spec"]
    boards = kind(manifests, "ConfigMap")
    assert all(board["metadata"]["labels"]["grafana_dashboard"] == "1" for board in boards)
    found = {name: json.loads(text) for board in boards for name, text in board["data"].items()}
    stack = {path.name: json.loads(path.read_text()) for path in (ROOT / "dashboards/grafana").glob("corevital-*.json")}
    assert {name: titles(board) for name, board in found.items()} == {
        name: titles(board) for name, board in stack.items()
    }
    text = json.dumps(found)
    for part in (CONFIG.targets.selector, f"by (cluster, {', '.join(CONFIG.labels.server)})", CONFIG.urls.hub):
        assert json.dumps(part)[1:-1] in text, part
    for part in (COMPOSE.targets.selector, f"by (cluster, {', '.join(COMPOSE.labels.server)})"):
        assert json.dumps(part)[1:-1] not in text, part
    largest = max(len(json.dumps(board)) for board in boards)
    assert largest < 262_144, "kubectl apply keeps a copy in an annotation, whose limit this is"


@pytest.mark.parametrize("case", ["a shared cluster"])
def test_a_shared_cluster_gets_no_alerts_about_its_stack(manifests: list[dict[str, Any]]) -> None:
    (rule,) = kind(manifests, "PrometheusRule")
    custom = yaml.safe_load(
        (KUBERNETES / "prometheusrule.yaml").read_text().replace(CONFIG.urls.grafana, "https://grafana.example.com")
    )
    assert rule["spec"]["groups"] == [group for group in custom["spec"]["groups"] if group["name"] != "corevital-stack"]


def test_queries_of_the_charts_dashboards_parse(tmp_path: Path) -> None:
    queries = [each.query for each in expressions(CHART / "files/dashboards") if each.language == "promql"]
    assert len(queries) > 120
    assert not unparsable(queries, tmp_path)


def test_the_address_of_grafana_is_the_one_that_the_rules_are_made_with() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["monitoring"]["rules"]["grafanaUrl"] == CONFIG.urls.grafana
    assert CONFIG.urls.grafana in (CHART / "templates/rules.yaml").read_text()
