"""The Helm chart, rendered with many values: its schemas, and what must match. There is no cluster."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from typing import Any

import pytest
import yaml
from tests.dashboards.chart_cases import CHART, GIVEN, PAGE, WRONG, every, kind
from tests.dashboards.references import permitted, ports, secrets, templates, unmatched
from tests.dashboards.tools import ROOT
from tests.harness.chart import asked

from corevital_otel import __version__
from corevital_otel.settings import Settings


@every
def test_each_manifest_is_valid_by_its_schema(rendered: dict[str, dict[str, Any]], case: str) -> None:
    assert rendered[case].get("problems") == [], rendered[case].get("error")
    assert rendered[case]["manifests"]


def test_helm_lint_finds_nothing(rendered: dict[str, dict[str, Any]]) -> None:
    assert rendered["lint"]["problems"] == []


@every
def test_each_reference_matches(manifests: list[dict[str, Any]]) -> None:
    assert unmatched(manifests, GIVEN) == []


@every
def test_pods_are_restricted(manifests: list[dict[str, Any]]) -> None:
    for workload, template in templates(manifests):
        assert list(permitted(template, host_network=workload["kind"] == "DaemonSet")) == []


@every
def test_each_secret_is_made_by_a_command_of_the_page(manifests: list[dict[str, Any]]) -> None:
    commands = re.findall(r"create secret generic (\S+)((?:.*\\\n)*.*)", PAGE)
    known = {(name, key) for name, literals in commands for key in re.findall(r"--from-literal=([\w-]+)=", literals)}
    assert set(secrets(manifests)) <= known
    assert not kind(manifests, "Secret"), "secrets are only referred to"


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused_with_one_line(rendered: dict[str, dict[str, Any]], case: str) -> None:
    error = rendered[case]["error"]
    assert WRONG[case][1] in error
    assert len([line for line in error.splitlines() if line.strip() and line != "corevital:"]) == 1, error


BREAKS = {
    "unknown field": lambda pod: pod["spec"].update(replica=1),
    "port": lambda pod: pod["spec"]["template"]["spec"]["containers"][0]["ports"][0].update(name="web"),
    "label": lambda pod: pod["spec"]["template"]["metadata"]["labels"].update({"app.kubernetes.io/component": "x"}),
    "claim": lambda pod: pod["spec"]["template"]["spec"]["volumes"].append(
        {"name": "x", "persistentVolumeClaim": {"claimName": "x"}}
    ),
    "account": lambda pod: pod["spec"]["template"]["spec"].update(serviceAccountName="x"),
}


@pytest.mark.parametrize("case", ["defaults"])
@pytest.mark.parametrize("broken", BREAKS)
def test_the_checks_find_what_is_broken(manifests: list[dict[str, Any]], broken: str) -> None:
    wrong = copy.deepcopy(manifests)
    BREAKS[broken](kind(wrong, "Deployment")[0])
    if broken == "unknown field":
        monitor = copy.deepcopy(kind(wrong, "PodMonitor")[0])
        monitor["spec"]["podMetricsEndpoint"] = []
        answer = asked(validate={"broken": [*kind(wrong, "Deployment"), monitor, {"apiVersion": "v9", "kind": "Pod"}]})
        assert len(answer["broken"]["problems"]) == 3
    else:
        assert unmatched(wrong)


@pytest.mark.parametrize("case", ["defaults"])
def test_a_privilege_is_found(manifests: list[dict[str, Any]]) -> None:
    (workload,) = kind(copy.deepcopy(manifests), "Deployment")
    workload["spec"]["template"]["spec"]["containers"][0]["securityContext"]["privileged"] = True
    assert list(permitted(workload["spec"]["template"])) == ["vllm: privileges"]


def test_versions_are_the_packages() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert chart["version"] == re.sub(r"\.dev(\d+)$", r"-dev.\1", __version__)


def test_the_schema_knows_every_value_and_every_setting() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def covered(part: dict[str, Any], known: dict[str, Any], path: str) -> None:
        assert known.get("additionalProperties") is False, path
        assert part.keys() == known["properties"].keys() - {"global"}, path
        for name, value in part.items():
            if name != "settings" and "properties" in known["properties"][name]:
                covered(value, known["properties"][name], f"{path}.{name}")

    covered(values, schema, "values")
    known = {f"COREVITAL_{name.upper()}" for name in Settings.model_fields}
    chosen = schema["properties"]["settings"]["properties"].keys()
    of_the_chart = {"DB", "DB_MAX_MB", "DB_RETENTION_DAYS", "LOG_FORMAT", "HUB", "HUB_KEY", "HTTP", "HTTP_TOKEN"}
    elsewhere = {"ATTACH", "PROMPT_HASH_KEY"}  # of other engines; a secret, which vllm.env can refer to
    assert known - chosen == {f"COREVITAL_{name}" for name in of_the_chart | elsewhere}
    assert chosen <= known


def test_the_archive_has_the_chart() -> None:
    sdist = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert "dashboards" in sdist["include"]


def test_ports_have_names() -> None:
    assert ports({"spec": {"containers": [{"ports": [{"name": "a", "containerPort": 1}]}]}}) == {"a": 1}
