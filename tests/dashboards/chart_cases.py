"""Values that the Helm chart is rendered with, and how tests find things in what it makes."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import yaml
from tests.dashboards.tools import ROOT
from tests.harness.chart import asked

KUBERNETES = ROOT / "dashboards/kubernetes"
CHART = KUBERNETES / "chart"
PAGE = (ROOT / "docs/operate/kubernetes.md").read_text()
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
every = pytest.mark.parametrize("case", CASES)


@functools.cache
def rendered() -> dict[str, dict[str, Any]]:
    """What the chart makes of :data:`CASES` and of :data:`WRONG`, and what Helm's lint finds."""
    return asked(render=CASES | {name: values for name, (values, _) in WRONG.items()}, lint={"lint": IMAGE})


def kind(manifests: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [each for each in manifests if each["kind"] == name]


def of_vllm(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (workload,) = kind(manifests, "Deployment")
    return workload["spec"]["template"]["spec"]["containers"][0]


def variables(container: dict[str, Any]) -> dict[str, str | None]:
    return {variable["name"]: variable.get("value") for variable in container["env"]}
