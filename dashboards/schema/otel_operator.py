"""The schema of the OpenTelemetry Operator's resources beside this file, from a checkout of the operator (Apache-2.0).

    python dashboards/schema/otel_operator.py CHECKOUT

Run it to support a newer operator, or when the chart sets another field of the two resources; the tests read the
committed file. No package index has these definitions.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import yaml

USED: Final = {
    "opentelemetrycollectors": ("v1beta1", ("mode", "replicas", "image", "env", "resources", "podSecurityContext",
                                            "securityContext", "volumeMounts", "volumeClaimTemplates", "config")),
    "instrumentations": ("v1alpha1", ("exporter", "propagators", "sampler")),
}  # fmt: skip
"""Version of each resource, and the fields of its ``spec`` that the chart sets."""
_KEPT: Final = {
    *("type", "properties", "items", "additionalProperties", "required", "enum", "pattern", "minimum", "maximum"),
    *("minItems", "maxItems", "minLength", "maxLength", "anyOf", "format"),
}
_META: Final = {"type": "object", "required": ["name"]}
_FREE: Final = "x-kubernetes-preserve-unknown-fields"


def strict(node: dict[str, Any]) -> dict[str, Any]:
    """A definition without prose, in which an unknown field is an error, as the API server drops it in silence."""
    made = {key: value for key, value in node.items() if key in _KEPT}
    if node.get("x-kubernetes-int-or-string"):
        made = {"type": ["integer", "string"]}
    if "properties" in made:
        made["properties"] = {name: strict(value) for name, value in made["properties"].items()}
        if not node.get(_FREE):
            made["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = strict(made[key])
    return made


def resource(definition: dict[str, Any], version: str, fields: tuple[str, ...]) -> dict[str, Any]:
    """One version of a resource, with only these fields of its ``spec``."""
    (found,) = [each for each in definition["spec"]["versions"] if each["name"] == version]
    spec = strict(found["schema"]["openAPIV3Schema"])["properties"]["spec"]
    known = spec["properties"]
    spec["properties"] = {name: known[name] for name in fields}
    properties = {"apiVersion": {"const": f"{definition['spec']['group']}/{version}"}, "metadata": _META, "spec": spec}
    properties["kind"] = {"const": definition["spec"]["names"]["kind"]}
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


def main(checkout: Path) -> None:
    """Write the schema."""
    (version,) = re.findall(r"^operator=(\S+)", (checkout / "versions.txt").read_text(), re.MULTILINE)
    made: dict[str, Any] = {"source": f"opentelemetry-operator {version}", "license": "Apache-2.0"}
    for name, (api, fields) in USED.items():
        definition = yaml.safe_load((checkout / f"config/crd/bases/opentelemetry.io_{name}.yaml").read_text())
        made[definition["spec"]["names"]["kind"]] = resource(definition, api, fields)
    out = Path(__file__).with_name("opentelemetry-operator.json")
    out.write_text(json.dumps(made, indent=1) + "\n")
    sys.stdout.write(f"wrote {out.name}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
