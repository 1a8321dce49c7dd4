"""``.venv-kube/bin/python -m dashboards.source.kustomize`` renders the chart into ``dashboards/kubernetes/kustomize``.

It runs in the environment that the Makefile makes for Helm's library, not in that of :mod:`dashboards.source`.
``--check`` compares.
"""

import sys
from pathlib import Path
from typing import Any, Final

import helm_python
import yaml
from dashboards.source.go_yaml import documents
from dashboards.source.written import write_or_check

FOLDER: Final = Path(__file__).parents[1] / "kubernetes"
NAME, NAMESPACE = "corevital", "default"
_HEAD: Final = "# Made by `make kustomize` from ../../chart: change it there, or patch it in your kustomization.\n"
_OF_HELM: Final = ("app.kubernetes.io/managed-by", "helm.sh/chart")
_OFF: Final[dict[str, Any]] = {
    "podMonitor": {"enabled": False},
    "rules": {"enabled": False},
    "dashboards": {"enabled": False},
}
_SERVER: Final[dict[str, Any]] = {
    "image": {"repository": "corevital-vllm"},
    "monitoring": {"rules": {"enabled": False}, "dashboards": {"enabled": False}},
    "otlp": {"endpoint": "http://corevital-otel-collector:4317"},
}
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "server": _SERVER | {"store": {"kind": "persistentVolumeClaim"}},
    "server-cpu": _SERVER
    | {
        "vllm": {
            "args": ["--max-model-len=2048"],
            "gpu": {"count": 0},
            "resources": {"requests": {"cpu": "2", "memory": "6Gi"}, "limits": {"memory": "10Gi"}},
            "sharedMemory": "1Gi",
            "modelCache": {"size": "5Gi"},
        }
    },
    "server-rust": _SERVER
    | {
        "vllm": {"frontend": "rust"},
        "hub": {"kind": "sidecar", "image": {"repository": "corevital-hub"}},
    },
    "monitoring": {"vllm": {"enabled": False}},
    "alertmanager": {
        "vllm": {"enabled": False},
        "monitoring": _OFF | {"alertmanager": {"enabled": True, "slack": {"channel": "#llm-alerts"}}},
    },
    "collector": {
        "vllm": {"enabled": False},
        "monitoring": _OFF | {"podMonitor": {"enabled": True}},
        "collector": {"enabled": True},
    },
}
"""The values of each folder: a base that a kustomization refers to."""


def render(values: dict[str, Any], name: str, namespace: str) -> list[dict[str, Any]]:
    """The chart's manifests, in the order of its templates.

    Raises:
        helm_python.HelmError: a value is wrong, or two do not go together.
    """
    with helm_python.Chart.load(FOLDER / "chart") as chart:
        chart.validate_schema(values)
        made = chart.render(values, name=name, namespace=namespace)
    texts = [made[template] for template in sorted(made) if template.endswith(".yaml")]
    return [document for text in texts for document in documents(text)]


def without_helm(document: dict[str, Any]) -> dict[str, Any]:
    """A manifest without the labels that name Helm, and without a namespace, which a kustomization sets."""
    metadata = {name: value for name, value in document["metadata"].items() if name != "namespace"}
    metadata["labels"] = {name: value for name, value in metadata["labels"].items() if name not in _OF_HELM}
    kept = {name: value for name, value in metadata.get("annotations", {}).items() if not name.startswith("helm.sh/")}
    metadata.pop("annotations", None)
    return document | {"metadata": metadata | ({"annotations": kept} if kept else {})}


def files() -> dict[str, str]:
    """Each file's text, by its path in ``kustomize/``."""
    made = {}
    for variant, values in VARIANTS.items():
        manifests = [without_helm(document) for document in render(values, NAME, NAMESPACE)]
        made[f"{variant}/manifests.yaml"] = _HEAD + yaml.safe_dump_all(
            manifests, sort_keys=False, width=10_000, allow_unicode=True
        )
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["manifests.yaml"],
        }
        made[f"{variant}/kustomization.yaml"] = _HEAD + yaml.safe_dump(kustomization, sort_keys=False)
    return made


def main(arguments: list[str]) -> int:
    """Write or check; the number of files that differ is the exit status."""
    made = {FOLDER / "kustomize" / name: text for name, text in files().items()}
    present = (FOLDER / "kustomize").glob("*/*.yaml")
    return write_or_check(made, present, arguments, "the chart makes: run make kustomize")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
