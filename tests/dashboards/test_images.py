"""The images of dashboards/docker: what they copy, run as and check. Without an engine nothing is built."""

from __future__ import annotations

import fnmatch
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from corevital_otel import asset_files

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "dashboards/docker"
FILES = {name: (DOCKER / name).read_text() for name in ("Dockerfile", "Dockerfile.hub")}
each = pytest.mark.parametrize("name", FILES)


def copied(name: str) -> set[str]:
    """What a Dockerfile copies from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", FILES[name], re.MULTILINE)
    return {path for line in lines for path in line.split()}


@each
def test_what_builds_the_package_is_copied(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "custom" in wheel["hooks"], "hatch_build.py is its file"
    needed = {"pyproject.toml", "hatch_build.py", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {package.partition("/")[0] for package in wheel["packages"]}
    needed |= {name.partition("/")[0] for name in asset_files.in_repository(ROOT)}
    assert needed <= copied(name)
    assert all((ROOT / path).exists() for path in copied(name))


@each
def test_the_builder_is_sent_what_is_copied(name: str) -> None:
    first, *lines = [line for line in (DOCKER / f"{name}.dockerignore").read_text().split() if not line.startswith("#")]
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in (first, *lines), "without it the environments of `make`, many GB, are sent too"
    for path in copied(name):
        assert any(path == keep or path.startswith(f"{keep}/") for keep in kept), path
        assert not fnmatch.fnmatch(path, "*.pyc")


@each
def test_the_base_is_pinned_and_the_user_is_not_root(name: str) -> None:
    (base,) = re.findall(r"^ARG BASE=\S+:(\S+)$", FILES[name], re.MULTILINE)
    assert re.match(r"v?\d+\.\d+", base)
    assert set(re.findall(r"^FROM (\S+)", FILES[name], re.MULTILINE)) == {"${BASE}"}
    *_, last = re.findall(r"^USER (\S+)$", FILES[name], re.MULTILINE)
    assert last == "2000:0"
    assert "HEALTHCHECK" in FILES[name]


def test_compose_builds_the_same_image() -> None:
    build = yaml.safe_load((ROOT / "docker-compose.otel.yml").read_text())["services"]["vllm"]["build"]
    assert ROOT / build["dockerfile"] == DOCKER / "Dockerfile"
    for argument, value in build["args"].items():
        default = re.sub(r"^\$\{\w+:-(.+)\}$", r"\1", value)
        assert f"ARG {argument}={default}\n" in FILES["Dockerfile"]


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, str]:
    """An environment whose ``vllm`` and ``corevital`` are stand-ins that print their arguments, one a line."""
    for name in ("vllm", "corevital"):
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '%s\\n' {name} \"$@\"\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin"}


SERVE, PLUGIN = ["vllm", "serve"], ["--logits-processors", "corevital"]


@pytest.mark.parametrize(
    ("given", "run"),
    [
        (["m"], [*SERVE, "m", *PLUGIN]),
        (["-tp", "8", "--served-model-name", "a b"], [*SERVE, "-tp", "8", "--served-model-name", "a b", *PLUGIN]),
        (["m", *PLUGIN, "other"], [*SERVE, "m", *PLUGIN, "other"]),
        (["m", "--logits-processor=other"], [*SERVE, "m", "--logits-processor=other"]),
        (["m", "--logits-processor-pattern", "x"], [*SERVE, "m", "--logits-processor-pattern", "x", *PLUGIN]),
        (["corevital", "doctor", "--url", "u"], ["corevital", "doctor", "--url", "u"]),
        ([], [*SERVE, *PLUGIN]),
    ],
)
def test_arguments_are_passed_through(commands: dict[str, str], given: list[str], run: list[str]) -> None:
    done = subprocess.run(
        ["sh", DOCKER / "serve.sh", *given], env=commands, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines() == run


def healthy(address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DOCKER / "hub_health.py"],
        env={"COREVITAL_HTTP": address},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_health_of_a_hub_that_is_not_there() -> None:
    done = healthy(f"0.0.0.0:{free_port()}")
    assert done.returncode == 1
    assert done.stderr.startswith("not healthy: ")
    assert "COREVITAL_HTTP=none" in healthy("none").stderr


@pytest.mark.slow
def test_the_hub_as_its_image_runs_it_is_healthy(tmp_path: Path) -> None:
    """The command of the image, on all addresses, which needs a token that the check does without."""
    address = f"0.0.0.0:{free_port()}"
    environment = {
        **os.environ,
        "COREVITAL_HUB": f"tcp://127.0.0.1:{free_port()}",
        "COREVITAL_HUB_KEY": "0123456789abcdef",
        "COREVITAL_HTTP": address,
        "COREVITAL_HTTP_TOKEN": "token",
        "COREVITAL_DB": str(tmp_path / "corevital.db"),
        "COREVITAL_LOG_FORMAT": "json",
    }
    assert 'ENTRYPOINT ["corevital"]\nCMD ["hub"]' in FILES["Dockerfile.hub"]
    command = [sys.executable, "-m", "corevital_otel.cli", "hub"]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as hub:
        try:
            until = time.monotonic() + 60
            while (done := healthy(address)).returncode and time.monotonic() < until:
                time.sleep(0.2)
            assert done.returncode == 0, done.stderr
        finally:
            hub.send_signal(signal.SIGTERM)
            hub.communicate(timeout=60)
    assert hub.returncode == 0
