"""The pods that the Helm chart makes: arguments, settings, probes, and what they may reach."""

from __future__ import annotations

from typing import Any

import pytest
from tests.dashboards.chart_cases import kind, of_vllm, variables


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


@pytest.mark.parametrize("case", ["nodes"])
def test_what_is_kept_is_a_setting_of_the_hub(manifests: list[dict[str, Any]]) -> None:
    (daemon,) = kind(manifests, "DaemonSet")
    (hub,) = daemon["spec"]["template"]["spec"]["containers"]
    assert variables(hub)["COREVITAL_SAMPLE_RATE"] == "0.1"
