"""Renders the Helm chart and checks manifests by their schemas. Runs in the Makefile's environment .venv-kube.

Reads JSON: ``{"render": {case: values}, "validate": {case: [manifest, ...]}, "lint": {case: values}}``. Writes, by
case, ``{"manifests": [...], "problems": [...]}``, or ``{"error": text}`` where the chart refuses the values.
"""

import json
import sys

import helm_python
import jsonschema
import kubernetes_validate
import pydantic
from cloudcoil.models.prometheus_operator import v1, v1alpha1
from dashboards.source.kustomize import FOLDER, render

VERSION = "1.37"
OPERATOR = {
    "PodMonitor": v1.PodMonitor,
    "PrometheusRule": v1.PrometheusRule,
    "AlertmanagerConfig": v1alpha1.AlertmanagerConfig,
}
OPENTELEMETRY = json.loads((FOLDER.parent / "schema/opentelemetry-operator.json").read_text())
"""Schemas by kind, for the fields that the chart sets."""


def problem(manifest):
    """What is wrong with a manifest by its schema; None if nothing is."""
    kind = manifest["kind"]
    try:
        if kind in OPERATOR:
            OPERATOR[kind].model_validate(manifest, extra="forbid")
        elif kind in OPENTELEMETRY:
            jsonschema.validate(manifest, OPENTELEMETRY[kind])
        else:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
    except pydantic.ValidationError as error:
        return f"{kind}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
    except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
        return f"{kind}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        return f"{kind}: unknown"
    return None


def validated(manifests):
    return {"manifests": manifests, "problems": [found for each in manifests if (found := problem(each))]}


def rendered(values):
    try:
        return validated(render(values, "demo", "prod"))
    except helm_python.HelmError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answer = {case: rendered(values) for case, values in asked.get("render", {}).items()}
    answer |= {case: validated(manifests) for case, manifests in asked.get("validate", {}).items()}
    for case, values in asked.get("lint", {}).items():
        found = helm_python.lint(FOLDER / "chart", values)["messages"]
        answer[case] = {"problems": [each["error"] for each in found if each["severity"] > 1]}  # 1: a recommendation
    json.dump(answer, sys.stdout)
