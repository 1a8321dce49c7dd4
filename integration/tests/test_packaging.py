"""Wheel and sdist: what they hold, and that the wheel installs and starts without torch and an engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path = ROOT) -> str:
    clean = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "UV_PYTHON")
    }
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
        "corevital/entry.py",
        "corevital/py.typed",
        "corevital_otel/py.typed",
        "corevital_otel/cli/demo/model/model.safetensors",
        "corevital_attach.pth",
        "corevital_otel/ui/templates/base.html",
        "corevital_otel/ui/static/page.css",
    ):
        assert wanted in names
    assert not [name for name in names if name.startswith(("tests/", "integration/", "plugin/", "otel/"))]
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    for engine in ("vllm", "torch", "triton", "numba"):
        assert f"Requires-Dist: {engine}" not in metadata, "the user brings the engine"


@pytest.mark.skipif(
    shutil.which("npm") is None, reason="no npm here: the wheel has none of the scripts that it fetches"
)
def test_the_wheel_holds_the_page_s_scripts_with_their_licences_and_the_sdist_does_not(built: Path) -> None:
    (wheel,) = built.glob("corevital-*.whl")
    folder = "corevital_otel/ui/static/vendor/"
    names = {name.removeprefix(folder) for name in zipfile.ZipFile(wheel).namelist() if name.startswith(folder)}
    assert names >= {"htmx.min.js", "htmx.LICENSE", "uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE"}
    (sdist,) = built.glob("corevital-*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "/vendor/" in name]


def test_the_sdist_holds_what_builds_tests_and_documents_the_package(built: Path) -> None:
    (sdist,) = built.glob("corevital-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        "conftest.py",
        "hatch_build.py",
        "constraints.txt",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
        "Makefile",
    ):
        assert wanted in names
    for folder in ("plugin", "otel", "tests", "integration", "dashboards", "docs"):
        files = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*.*")
            if path.suffix in (".py", ".md", ".yml")
        }
        assert files - names == set()


def test_the_wheel_installs_and_starts_without_torch_and_engine(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("corevital-*.whl")
    venv = tmp_path / "venv"
    python = str(venv / "bin/python")
    run(sys.executable, "-m", "venv", str(venv))
    run(python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", str(wheel))
    installed = run(python, "-m", "pip", "list").lower()
    for absent in ("torch", "vllm", "numba", "transformers"):
        assert f"\n{absent} " not in installed
    code = "import corevital.kernels, corevital_otel.service.loop; print(corevital.__file__)"
    assert run(python, "-c", code, cwd=tmp_path).startswith(str(venv))
    corevital = str(venv / "bin/corevital")
    assert "Usage: corevital" in run(corevital, "--help", cwd=tmp_path)
    assert run(corevital, "--version", cwd=tmp_path).startswith("corevital ")
