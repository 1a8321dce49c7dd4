"""A pod of the Helm chart with a real hub as its sidecar, in a separate network namespace.

vLLM is a stand-in (tests/harness/engine_stand_in.py), and so is the kubelet (tests/harness/pod.py). Arguments,
variables, ports and probes are the manifests'.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.harness.chart import asked
from tests.harness.processes import ROOT, environment

from corevital_otel.store.reader import StoreReader

INSIDE = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
IMAGE = {"repository": "x"}
VALUES = {"image": IMAGE, "hub": {"kind": "sidecar", "image": IMAGE}, "vllm": {"frontend": "rust"}}
HUB = "http://127.0.0.1:9464"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        subprocess.run([*INSIDE, "true"], capture_output=True, check=False).returncode != 0,
        reason="this machine makes no network namespaces for this user",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pod")


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Any]:
    (workload,) = [m for m in asked(render={"pod": VALUES})["pod"]["manifests"] if m["kind"] == "Deployment"]
    given = {
        "pod": workload["spec"]["template"]["spec"],
        "secrets": {"corevital-hub": {"key": "0123456789abcdef", "token": "token"}},
        "entrypoints": {
            "vllm": [sys.executable, "-m", "tests.harness.engine_stand_in"],
            "hub": [sys.executable, "-m", "corevital_otel.cli"],
        },
        "environment": environment({"PYTHONPATH": f"{ROOT / 'plugin'}:{ROOT / 'otel'}:{ROOT}"}),
        "folder": str(folder),
        "ask": [
            {"url": "http://127.0.0.1:8000/metrics"},
            {"url": f"{HUB}/metrics"},
            {"url": f"{HUB}/metrics", "headers": {"Authorization": "Bearer token"}},
            {"url": f"{HUB}/corevital/v1/requests/r?wait=20", "headers": {"Authorization": "Bearer token"}},
        ],
        "run": ["vllm", sys.executable, "-m", "corevital_otel.cli", "spans", "--json"],
    }
    command = [*INSIDE, sys.executable, "-m", "tests.harness.pod"]
    done = subprocess.run(
        command, input=json.dumps(given), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_the_sidecar_follows_the_engines_requests(ran: dict[str, Any], folder: Path) -> None:
    status, report = ran["answers"][3]
    assert status == 200, report
    assert [each["request_id"] for each in json.loads(report)] == ["r"]
    assert [row.request_id for row in StoreReader(folder / "store/corevital.db").list_reports(limit=10)] == ["r"]


def test_the_command_line_in_vllms_container_reads_the_store(ran: dict[str, Any]) -> None:
    status, text = ran["ran"]
    assert status == 0, text
    assert '"r"' in text


def test_the_hubs_metrics_need_the_token(ran: dict[str, Any]) -> None:
    statuses = [status for status, _ in ran["answers"][:3]]
    assert statuses == [200, 401, 200]
    assert "corevital_requests_total" in ran["answers"][2][1]


def test_both_end_in_order(ran: dict[str, Any]) -> None:
    assert ran["ended"] == {"vllm": 0, "hub": 0}, ran["logs"]


def test_the_arguments_arrive(ran: dict[str, Any]) -> None:
    assert "arguments: Qwen/Qwen3-0.6B --port=8000 --shutdown-timeout=30" in ran["logs"]["vllm"]
