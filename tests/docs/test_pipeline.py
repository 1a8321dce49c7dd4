"""The examples of docs/operate/pipeline.md: they are what their platforms expect, and their commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import make_report
from tests.harness.old_store import store_of_0_1

from corevital_otel.counters import Counters
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

PAGE = (Path(__file__).resolve().parents[2] / "docs/operate/pipeline.md").read_text()


def block(heading: str, number: int = 0) -> str:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[number]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the stores, the file of objectives and the programs that the examples name."""
    for name in ("reference.db", "candidate.db"):
        writer = StoreWriter(tmp_path / name, 36500, 100, Counters())
        for i in range(120):
            row = make_report(request_id=f"r{i}", end_ns=time.time_ns())
            writer.put(record_of(row, SpanIds(f"{i + 1:032x}", f"{i + 1:016x}")))
        writer.close(10)
    toml = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
    (tmp_path / "slo.toml").write_text(toml)
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/corevital", f'exec {sys.executable} -m corevital_otel.cli "$@"')
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run(place: Path, script: str, shell: tuple[str, ...] = ("bash", "-eo", "pipefail", "-c")) -> Any:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COREVITAL_", "OTEL_"))}
    env = {**clean, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "COREVITAL_DB": str(place / "candidate.db")}
    return subprocess.run([*shell, script], cwd=place, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("heading", "schema", "file"),
    [
        ("GitHub Actions", "github-workflows", "model.yml"),
        ("Before an upgrade", "github-workflows", "upgrade.yml"),
        ("GitLab", "gitlab-ci", ".gitlab-ci.yml"),
    ],
)
def test_ci_examples_have_their_platforms_form(tmp_path: Path, heading: str, schema: str, file: str) -> None:
    (tmp_path / file).write_text(block(heading))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(tmp_path / file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_upgrade_job_asks_for_a_migration_and_rehearses_it(place: Path) -> None:
    steps = [
        step["run"] for step in yaml.safe_load(block("Before an upgrade"))["jobs"]["store"]["steps"] if "run" in step
    ]
    due, rehearsal = [step for step in steps if step.startswith("corevital ")]
    store_of_0_1(place / "production.db", 20)
    done = run(place, f"{due}\n{rehearsal}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "::warning::run corevital db migrate" in done.stdout
    assert "its schema 3 is older than ours" in done.stderr
    assert "20 requests restored from production.db, migrated from schema 3" in done.stdout
    (place / "rehearsal.db").rename(place / "production.db")
    assert "::warning::" not in run(place, due).stdout
    (place / "production.db").write_bytes(b"no database" * 900)
    assert run(place, f"{due}\n{rehearsal}").returncode == 1
    deployment = "corevital db migrate --check || corevital db migrate"
    assert deployment in PAGE
    store_of_0_1(place / "old.db", 5)
    assert "migrated from schema 3" in run(place, f"export COREVITAL_DB=old.db; {deployment}").stdout
    assert "up to date" in run(place, f"export COREVITAL_DB=old.db; {deployment}").stdout


def test_commands_of_the_ci_examples_run(place: Path) -> None:
    github = [step.get("run", "") for step in yaml.safe_load(block("GitHub Actions"))["jobs"]["compare"]["steps"]]
    gitlab = yaml.safe_load(block("GitLab"))["compare"]["script"]
    commands = [line for line in (*github, *gitlab) if line.startswith("corevital ")]
    assert len(commands) == 4
    done = run(place, "\n".join(dict.fromkeys(commands)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"verdict": "same"' in (place / "verdict.json").read_text()


def test_the_analysis_template_runs(place: Path) -> None:
    """``kubectl`` is a stand-in: a pod is a folder, and a command runs in it."""
    program(
        place / "bin/kubectl",
        f"""echo "$@" >> {place}/calls
[ "$1" = get ] && {{ echo "pod/${{4#*=}}"; exit; }}
shift; [ "$1" = -i ] && shift
mkdir -p {place}/$1; cd {place}/$1; shift 2
exec "$@\"""",
    )
    (metric,) = yaml.safe_load(block("Argo Rollouts"))["spec"]["metrics"]
    (container,) = metric["provider"]["job"]["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    script = f"STABLE=old LATEST=new; {script}"
    done = run(place, script, tuple(container["command"]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "met: 120 requests in 15m" in done.stdout
    assert "verdict: same" in done.stdout
    assert (place / "pod/new/stable.db").read_bytes() == (place / "pod/old/stable.db").read_bytes()
    (place / "candidate.db").unlink()
    shutil.rmtree(place / "pod")
    assert run(place, script, tuple(container["command"])).returncode == 1, "without a store it stops"


def test_the_rollout_passes_what_the_template_asks_for() -> None:
    asked = {arg["name"] for arg in yaml.safe_load(block("Argo Rollouts"))["spec"]["args"]}
    steps = yaml.safe_load(block("Argo Rollouts", 1))["strategy"]["canary"]["steps"]
    (analysis,) = [step["analysis"] for step in steps if "analysis" in step]
    assert {arg["name"] for arg in analysis["args"]} == asked
