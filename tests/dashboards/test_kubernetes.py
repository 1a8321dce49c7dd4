"""The Helm chart and the kustomize folders: rendered, by their schemas, and by what must match. There is no cluster."""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards.source.chart import alertmanager, merged
from dashboards.source.config import load, load_kubernetes
from dashboards.source.expressions import expressions
from dashboards.source.go_yaml import documents
from tests.dashboards.references import containers, permitted, ports, secrets, templates, unmatched
from tests.dashboards.tools import ROOT, run, unparsable
from tests.harness.chart import PYTHON, asked

from corevital_otel import __version__
from corevital_otel.settings import Settings

KUBERNETES = ROOT / "dashboards/kubernetes"
CHART = KUBERNETES / "chart"
PAGE = (ROOT / "docs/operate/kubernetes.md").read_text()
CONFIG, COMPOSE = load_kubernetes(), load()
IMAGE: dict[str, Any] = {"image": {"repository": "registry.example.com/corevital-vllm"}}
VALUES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((KUBERNETES / "values").glob("*.yaml"))}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": IMAGE,
    "a hub on each node": IMAGE | {"hub": {"kind": "daemonSet", "image": IMAGE["image"]}, "vllm": {"enabled": False}},
    "claims and an account that exist": IMAGE
    | {
        "vllm": {"modelCache": {"existingClaim": "weights"}, "serviceAccountName": "llm"},
        "store": {"kind": "persistentVolumeClaim", "existingClaim": "store"},
        "imagePullSecrets": [{"name": "registry"}],
        "nameOverride": "llm",
    },
    "mail only": IMAGE
    | {
        "monitoring": {
            "alertmanager": {
                "enabled": True,
                "email": {"to": "a@example.com", "from": "b@example.com", "smarthost": "mail:587", "username": "b"},
            }
        }
    },
    "pages only": IMAGE | {"monitoring": {"alertmanager": {"enabled": True, "pagerDuty": {"enabled": True}}}},
    "nothing to watch with": IMAGE
    | {
        "monitoring": {"podMonitor": {"enabled": False}, "rules": {"enabled": False}, "dashboards": {"enabled": False}},
        "networkPolicy": {"enabled": False},
    },
    "everything": IMAGE
    | {
        "vllm": {"replicas": 2, "minAvailable": 1, "gpu": {"count": 8}, "podAnnotations": {"a": "b"}},
        "hub": {"kind": "sidecar", "image": IMAGE["image"]},
        "collector": {"enabled": True},
        "instrumentation": {"enabled": True},
        "settings": {"COREVITAL_SAMPLE_RATE": 0.1, "COREVITAL_CAPTURE": "full"},
    },
    "a shared cluster": IMAGE
    | {"monitoring": {"rules": {"stack": False, "grafanaUrl": "https://grafana.example.com"}}},
    "other ports": IMAGE
    | {
        "otlp": {"endpoint": "http://collector.example.com:55680/otlp"},
        "networkPolicy": {"restrictEgress": True, "egressPorts": [3128, 8081]},
    },
    "a key for the Rust frontend": IMAGE
    | {
        "vllm": {"frontend": "rust", "apiKey": {"secretName": "vllm"}},
        "hub": {"kind": "sidecar", "image": IMAGE["image"]},
    },
}
CASES = VALUES | OPTIONS
GIVEN = frozenset(
    {"weights", "store", "llm", "app.kubernetes.io/component=serving-engine", "llm-d.ai/inference-serving=true"}
    | {"component=predictor", "app.kubernetes.io/part-of=llminferenceservice"}
)
"""What others make: claims, an account, pods of production-stack, llm-d and KServe."""
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown value": (IMAGE | {"vlm": {}}, "additional properties 'vlm' not allowed"),
    "a text for a number": (IMAGE | {"vllm": {"replicas": "two"}}, "at '/vllm/replicas': got string, want integer"),
    "an unknown kind of store": (IMAGE | {"store": {"kind": "pvc"}}, "at '/store/kind': value must be one of"),
    "an unknown setting": (
        IMAGE | {"settings": {"COREVITAL_SAMPEL": 1}},
        "at '/settings': additional properties 'COREVITAL_SAMPEL' not allowed",
    ),
    "an address without a scheme": (IMAGE | {"otlp": {"endpoint": "collector:4317"}}, "at '/otlp/endpoint'"),
    "no image": ({}, "image.repository is empty: build dashboards/docker/Dockerfile, push it, and set"),
    "no image of the hub": (IMAGE | {"hub": {"kind": "sidecar"}}, "hub.image.repository is empty: build"),
    "one volume for two pods": (
        IMAGE | {"vllm": {"replicas": 2}, "store": {"kind": "persistentVolumeClaim"}},
        "store.kind=persistentVolumeClaim needs vllm.replicas=1",
    ),
    "the Rust frontend without a hub": (IMAGE | {"vllm": {"frontend": "rust"}}, "vllm.frontend=rust needs a hub"),
    "another port": (IMAGE | {"vllm": {"args": ["--port=80"]}}, "vllm.args has --port=80"),
    "a sidecar of nothing": ({"vllm": {"enabled": False}, "hub": {"kind": "sidecar"}}, "needs vllm.enabled=true"),
    "a dead man without his alert": (
        IMAGE
        | {
            "monitoring": {
                "rules": {"stack": False},
                "alertmanager": {"enabled": True, "slack": {"channel": "#a"}, "deadMan": {"enabled": True}},
            }
        },
        "monitoring.rules.stack=false leaves out",
    ),
    "a sampler that the hub does not have": (
        IMAGE
        | {
            "hub": {"kind": "sidecar", "image": IMAGE["image"]},
            "otlp": {"endpoint": "http://collector:4317"},
            "instrumentation": {"enabled": True, "sampler": "parentbased_traceidratio"},
        },
        "instrumentation.sampler has no effect with a hub",
    ),
    "an instrumentation to nowhere": (IMAGE | {"instrumentation": {"enabled": True}}, "set otlp.endpoint"),
    "routes without a receiver": (
        IMAGE | {"monitoring": {"alertmanager": {"enabled": True}}},
        "monitoring.alertmanager.enabled=true needs a receiver",
    ),
}


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Any]]:
    return asked(render=CASES | {name: values for name, (values, _) in WRONG.items()}, lint={"lint": IMAGE})


@pytest.fixture
def manifests(rendered: dict[str, dict[str, Any]], case: str) -> list[dict[str, Any]]:
    return rendered[case]["manifests"]


every = pytest.mark.parametrize("case", CASES)


def kind(manifests: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [each for each in manifests if each["kind"] == name]


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


def of_vllm(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (workload,) = kind(manifests, "Deployment")
    return workload["spec"]["template"]["spec"]["containers"][0]


def variables(container: dict[str, Any]) -> dict[str, str | None]:
    return {variable["name"]: variable.get("value") for variable in container["env"]}


@pytest.mark.parametrize("case", ["everything"])
def test_all_gpus_are_used_and_settings_arrive(manifests: list[dict[str, Any]]) -> None:
    vllm = of_vllm(manifests)
    assert "--tensor-parallel-size=8" in vllm["args"]
    assert vllm["resources"]["limits"]["nvidia.com/gpu"] == "8"
    found = variables(vllm)
    assert (found["COREVITAL_SAMPLE_RATE"], found["COREVITAL_CAPTURE"]) == ("0.1", "full")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in found, "the Instrumentation sets it"
    (workload,) = kind(manifests, "Deployment")
    (hub,) = workload["spec"]["template"]["spec"]["initContainers"]
    assert hub["restartPolicy"] == "Always"
    assert variables(hub)["COREVITAL_HUB"] == found["COREVITAL_HUB"] == "tcp://127.0.0.1:9465"
    assert variables(hub)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://demo-otel-collector.prod:4317"


@pytest.mark.parametrize("case", ["a key for the Rust frontend", "gpu"])
def test_a_key_reaches_either_frontend(manifests: list[dict[str, Any]], case: str) -> None:
    """vLLM's Rust frontend has its arguments as JSON and does not read ``VLLM_API_KEY``."""
    vllm = of_vllm(manifests)
    names = [variable["name"] for variable in vllm["env"]]
    assert "VLLM_API_KEY" in names
    assert ("--api-key=$(VLLM_API_KEY)" in vllm["args"]) == ("VLLM_USE_RUST_FRONTEND" in names) == (case != "gpu")


@pytest.mark.parametrize("case", ["nodes"])
def test_pods_and_the_hub_of_their_node_have_the_same_address(manifests: list[dict[str, Any]]) -> None:
    (daemon,) = kind(manifests, "DaemonSet")
    (hub,) = daemon["spec"]["template"]["spec"]["containers"]
    assert variables(hub)["COREVITAL_HUB"] == variables(of_vllm(manifests))["COREVITAL_HUB"] == "tcp://$(NODE_IP):9465"
    (policy,) = kind(manifests, "NetworkPolicy")
    assert {"port": 9465} in [port for rule in policy["spec"]["egress"] for port in rule.get("ports", [])]


@pytest.mark.parametrize(
    ("case", "expected"), [("other ports", {55680, 3128, 8081}), ("fleet", set()), ("nodes", {9465})]
)
def test_a_restricted_egress_lets_telemetry_through(manifests: list[dict[str, Any]], expected: set[int]) -> None:
    (policy,) = kind(manifests, "NetworkPolicy")
    open_to = {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", [])}
    assert open_to == {53, 443, 4317, 4318} | expected


@pytest.mark.parametrize("case", ["gpu"])
def test_probes_wait_for_the_weights_and_volumes_for_their_pod(manifests: list[dict[str, Any]]) -> None:
    vllm = of_vllm(manifests)
    assert vllm["startupProbe"]["periodSeconds"] * vllm["startupProbe"]["failureThreshold"] == 60 * 60
    (workload,) = kind(manifests, "Deployment")
    assert workload["spec"]["strategy"] == {"type": "Recreate"}
    assert workload["spec"]["progressDeadlineSeconds"] > 60 * 60
    assert "--shutdown-timeout=30" in vllm["args"]
    assert workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 30


@pytest.mark.parametrize("case", ["cpu"])
def test_without_a_gpu_none_is_asked_for(manifests: list[dict[str, Any]]) -> None:
    assert of_vllm(manifests)["resources"]["limits"] == {"memory": "10Gi"}


COLLECTOR_FIELDS = {
    *("mode", "replicas", "image", "env", "resources", "podSecurityContext", "securityContext", "volumeMounts"),
    *("volumeClaimTemplates", "config"),
}
INSTRUMENTATION_FIELDS = {"exporter", "propagators", "sampler"}
"""Of the operator's CRDs, version 0.158: opentelemetry.io/v1beta1 and v1alpha1."""


@pytest.mark.parametrize("case", ["everything", "gpu"])
def test_the_collector_is_that_of_the_stack(manifests: list[dict[str, Any]]) -> None:
    (found,) = kind(manifests, "OpenTelemetryCollector")
    assert found["apiVersion"] == "opentelemetry.io/v1beta1"
    assert found["spec"].keys() <= COLLECTOR_FIELDS
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


@pytest.mark.parametrize("case", ["nodes"])
def test_what_is_kept_is_a_setting_of_the_hub(manifests: list[dict[str, Any]]) -> None:
    (daemon,) = kind(manifests, "DaemonSet")
    (hub,) = daemon["spec"]["template"]["spec"]["containers"]
    assert variables(hub)["COREVITAL_SAMPLE_RATE"] == "0.1"


@pytest.mark.parametrize("case", ["everything", "nodes"])
def test_the_instrumentation_has_known_fields(manifests: list[dict[str, Any]]) -> None:
    (found,) = kind(manifests, "Instrumentation")
    assert found["apiVersion"] == "opentelemetry.io/v1alpha1"
    assert found["spec"].keys() <= INSTRUMENTATION_FIELDS
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


def test_the_kustomize_folders_are_what_the_chart_makes() -> None:
    if not PYTHON.exists():
        pytest.skip("no .venv-kube: `make check-dashboards` makes it")
    command = [str(PYTHON), "-m", "dashboards.source.kustomize", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


FOLDERS = sorted((KUBERNETES / "kustomize").iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_kubectl_builds_each_folder(folder: Path) -> None:
    done = run("kubectl", "kustomize", folder)
    assert done.returncode == 0, done.stderr
    built = list(documents(done.stdout))
    written = list(documents((folder / "manifests.yaml").read_text()))

    def named(each: dict[str, Any]) -> tuple[str, str]:
        return each["kind"], each["metadata"]["name"]

    assert sorted(built, key=named) == sorted(written, key=named)
    assert unmatched(built) == []
    assert not re.search(r"\bdefault\.|\.default\b", done.stdout), "a kustomization sets the namespace"


def test_a_kustomization_of_the_page_builds(tmp_path: Path) -> None:
    """The example: a namespace, images and a patch."""
    (example,) = re.findall(r"```yaml\n# kustomization.yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "dashboards").symlink_to(ROOT / "dashboards")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/kustomization.yaml").write_text(example)
    done = run("kubectl", "kustomize", "--load-restrictor=LoadRestrictionsNone", tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    built = list(documents(done.stdout))
    assert {each["metadata"]["namespace"] for each in built} == {"llm"}
    images = {each["image"] for _, template in templates(built) for each in containers(template)}
    assert images == {"registry.example.com/corevital-vllm:0.2.0"}
    (vllm,) = [each for _, template in templates(built) for each in template["spec"]["containers"]]
    assert vllm["args"][0] == "Qwen/Qwen3-8B"
    assert unmatched(built) == []


def test_what_runs_beside_the_other_charts_has_the_plugin() -> None:
    for path in (KUBERNETES / "beside").glob("*.yaml"):
        text = path.read_text()
        assert "logits-processors" in text
        assert f"corevital-vllm:{__version__}" in text or f"tag: {__version__}" in text
        assert set(re.findall(r"COREVITAL_\w+", text)) <= {
            f"COREVITAL_{name.upper()}" for name in Settings.model_fields
        }


def test_weights_of_production_stack_are_writable_for_the_image() -> None:
    theirs = yaml.safe_load((KUBERNETES / "beside/production-stack.yaml").read_text())["servingEngineSpec"]
    assert theirs["securityContext"] == {"fsGroup": 2000}
    assert "USER 2000:" in (ROOT / "dashboards/docker/Dockerfile").read_text()


def test_ports_of_llm_d_are_those_that_are_scraped() -> None:
    theirs = yaml.safe_load((KUBERNETES / "beside/llm-d.yaml").read_text())
    for monitor in VALUES["llm-d"]["monitoring"]["otherServers"]:
        role = monitor["matchLabels"]["llm-d.ai/role"]
        assert monitor["port"] in {port["name"] for port in theirs[role]["containers"][0]["ports"]}


def test_the_archive_has_the_chart() -> None:
    sdist = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert "dashboards" in sdist["include"]


def test_ports_have_names() -> None:
    assert ports({"spec": {"containers": [{"ports": [{"name": "a", "containerPort": 1}]}]}}) == {"a": 1}
