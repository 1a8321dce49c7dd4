"""Wheel, sdist and what they need: the telemetry half and its tests where there is neither torch nor an engine."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE_FREE = (
    ("cli", "engines", "features", "frames", "logs", "risk", "settings", "text"),
    ("assembler", "boundary", "environment", "hub", "metrics", "store", "telemetry"),
)
"""Folders of tests, in two parts that run side by side: most of them wait."""


def run(*command: str, cwd: Path = ROOT) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "UV_PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", str(folder))
    return folder


def test_the_wheel_holds_both_packages_and_the_demo_model(built: Path) -> None:
    (wheel,) = built.glob("corevital-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "corevital/plugin.py",
        "corevital/py.typed",
        "corevital_otel/py.typed",
        "corevital_otel/demo/model/model.safetensors",
    ):
        assert wanted in names
    assert not [name for name in names if name.startswith(("tests/", "integration/", "plugin/", "otel/"))]
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    for engine in ("vllm", "torch", "triton", "numba"):
        assert f"Requires-Dist: {engine}" not in metadata, "the user brings the engine"
    assert len(list(built.glob("corevital-*.tar.gz"))) == 1


def test_the_telemetry_half_passes_its_tests_without_torch_and_engine(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("corevital-*.whl")
    venv = tmp_path / "venv"
    python = str(venv / "bin/python")
    run(sys.executable, "-m", "venv", str(venv))
    tools = ("pytest", "pytest-timeout", "hypothesis", "rotel", "fastapi", "httpx", "cryptography")
    tools += ("opentelemetry-exporter-prometheus",)
    run(python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", f"{wheel}[calibrate]", *tools)
    installed = run(python, "-m", "pip", "list").lower()
    for absent in ("torch", "vllm", "numba", "transformers"):
        assert f"\n{absent} " not in installed
    assert "Usage: corevital" in run(str(venv / "bin/corevital"), "--help")
    with ThreadPoolExecutor() as pool:
        parts = [(f"tests/{name}" for name in part) for part in ENGINE_FREE]
        for out in pool.map(lambda part: run(python, "-m", "pytest", "-q", *part, "-p", "no:cacheprovider"), parts):
            assert " passed" in out
            assert "failed" not in out
