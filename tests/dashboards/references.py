"""References within manifests that no schema checks: names, ports and labels that must match, and what a pod may do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Manifest = dict[str, Any]
OPERATORS = {"app.kubernetes.io/component": "opentelemetry-collector"}
"""A label of pods that the OpenTelemetry Operator makes."""
REPLACED = {f"app.kubernetes.io/{name}" for name in ("managed-by", "instance", "part-of", "component", "version")}
"""Those pods have the labels of their OpenTelemetryCollector, apart from these."""


def secrets(node: Any) -> Iterator[tuple[str, str]]:
    """Every Secret and key that something refers to: ``{name, key}``, in pods and in the operators' resources."""
    if isinstance(node, dict):
        if node.keys() >= {"name", "key"} and node.keys() <= {"name", "key", "optional"}:
            yield node["name"], node["key"]
        for value in node.values():
            yield from secrets(value)
    elif isinstance(node, list):
        for value in node:
            yield from secrets(value)


def templates(manifests: list[Manifest]) -> list[tuple[Manifest, Manifest]]:
    """Each workload and its pod's template."""
    return [(each, each["spec"]["template"]) for each in manifests if each["kind"] in ("Deployment", "DaemonSet")]


def containers(template: Manifest) -> list[Manifest]:
    """All of a pod, sidecars included."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def ports(template: Manifest) -> dict[str, int]:
    """Port names of a pod."""
    return {port["name"]: port["containerPort"] for each in containers(template) for port in each["ports"]}


def matches(labels: dict[str, str], template: Manifest) -> bool:
    """Whether a selector takes the pod."""
    return labels.items() <= template["metadata"]["labels"].items()


def unmatched(manifests: list[Manifest], given: frozenset[str] = frozenset()) -> list[str]:
    """References to nothing, one line each.

    Args:
        manifests: all of one installation.
        given: names of claims and accounts that it does not make, and labels of pods of others as ``name=value``.
    """
    names = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    pods = [template for _, template in templates(manifests)]
    found = [
        f"two are {name}" for name in names if sum(name == (m["kind"], m["metadata"]["name"]) for m in manifests) > 1
    ]
    for each in manifests:
        where = f"{each['kind']} {each['metadata']['name']}"
        spec = each.get("spec", {})
        wanted: set[str | int] = set()
        selector: dict[str, str] | None = None
        if each["kind"] in ("Deployment", "DaemonSet"):
            selector = spec["selector"]["matchLabels"]
            found += [f"{where}: {line}" for line in of_pod(spec["template"], names, given)]
        elif each["kind"] == "Service":
            selector, wanted = spec["selector"], {port["targetPort"] for port in spec["ports"]}
        elif each["kind"] == "PodMonitor":
            selector = spec["selector"]["matchLabels"]
            wanted = {endpoint["port"] for endpoint in spec["podMetricsEndpoints"] if "port" in endpoint}
        elif each["kind"] == "PodDisruptionBudget":
            selector = spec["selector"]["matchLabels"]
        elif each["kind"] == "NetworkPolicy":
            selector = spec["podSelector"]["matchLabels"]
            wanted = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
        if selector is None:
            continue
        if OPERATORS.items() <= selector.items():
            own = [m["metadata"]["labels"] for m in manifests if m["kind"] == "OpenTelemetryCollector"]
            kept = [{name: label for name, label in labels.items() if name not in REPLACED} for labels in own]
            if not any(selector.items() <= (labels | OPERATORS).items() for labels in kept):
                found.append(f"{where}: no Collector has the labels {selector}")
            continue
        if any(f"{name}={value}" in given for name, value in selector.items()):
            continue
        chosen = [pod for pod in pods if matches(selector, pod)]
        if not chosen:
            found.append(f"{where}: no pod has the labels {selector}")
        for pod in chosen:
            known = ports(pod)
            found += [f"{where}: no port {port}" for port in wanted if port not in {*known, *known.values()}]
    return found


def of_pod(template: Manifest, names: set[tuple[str, str]], given: frozenset[str]) -> Iterator[str]:
    """References of a pod."""
    spec = template["spec"]
    account = spec.get("serviceAccountName", "default")
    if account != "default" and ("ServiceAccount", account) not in names and account not in given:
        yield f"no ServiceAccount {account}"
    for volume in spec["volumes"]:
        for kind, field in (("PersistentVolumeClaim", "persistentVolumeClaim"), ("ConfigMap", "configMap")):
            name = volume.get(field, {}).get("claimName", volume.get(field, {}).get("name"))
            if name and (kind, name) not in names and name not in given:
                yield f"no {kind} {name}"
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounted = {mount["name"] for each in containers(template) for mount in each["volumeMounts"]}
    yield from (f"volume {name} is mounted or declared only" for name in sorted(volumes ^ mounted))
    for each in containers(template):
        own = {port["name"] for port in each["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if each[probe]["httpGet"]["port"] not in own:
                yield f"{each['name']}: {probe} asks a port that it does not have"
        before: set[str] = set()
        for variable in each["env"]:
            if missing := set(re.findall(r"\$\((\w+)\)", variable.get("value") or "")) - before:
                yield f"{each['name']}: {variable['name']} uses {sorted(missing)}, which no variable before it sets"
            if variable["name"] in before:
                yield f"{each['name']}: {variable['name']} is set twice"
            before.add(variable["name"])
    yield from of_instrumentation(template, names)


def of_instrumentation(template: Manifest, names: set[tuple[str, str]]) -> Iterator[str]:
    """What the OpenTelemetry Operator's annotations refer to."""
    annotations = template["metadata"].get("annotations", {})
    if name := annotations.get("instrumentation.opentelemetry.io/inject-sdk"):
        if ("Instrumentation", name) not in names:
            yield f"no Instrumentation {name}"
        if annotations["instrumentation.opentelemetry.io/container-names"] not in {
            c["name"] for c in containers(template)
        }:
            yield "no container for the Instrumentation"


def permitted(template: Manifest, *, host_network: bool = False) -> Iterator[str]:
    """What the Pod Security Standard ``restricted`` forbids, apart from the node's network where it is expected."""
    spec = template["spec"]
    pod = spec["securityContext"]
    if not (pod["runAsNonRoot"] and pod["runAsUser"] > 0 and pod["seccompProfile"]["type"] == "RuntimeDefault"):
        yield "root, or no seccomp"
    if any(spec.get(name) for name in ("hostPID", "hostIPC")) or bool(spec.get("hostNetwork")) != host_network:
        yield "the node's namespaces"
    if spec["automountServiceAccountToken"]:
        yield "a token of the API server"
    yield from (
        f"volume {volume['name']}"
        for volume in spec["volumes"]
        if not volume.keys() & {"emptyDir", "persistentVolumeClaim"}
    )
    for each in containers(template):
        context = each["securityContext"]
        if (
            context.get("privileged")
            or context["allowPrivilegeEscalation"]
            or context["capabilities"] != {"drop": ["ALL"]}
        ):
            yield f"{each['name']}: privileges"
        if "memory" not in each["resources"]["limits"] or not {"cpu", "memory"} <= each["resources"]["requests"].keys():
            yield f"{each['name']}: no limit of memory, or no requests"
