"""The kustomize folders as kubectl builds them, and what stands beside the charts of others. There is no cluster."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards.source.go_yaml import documents
from tests.dashboards.chart_cases import KUBERNETES, PAGE, VALUES
from tests.dashboards.references import containers, templates, unmatched
from tests.dashboards.tools import ROOT, run
from tests.harness.chart import PYTHON

from corevital_otel import __version__
from corevital_otel.settings import Settings


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
