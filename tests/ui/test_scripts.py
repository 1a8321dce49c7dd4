"""The scripts of others are fetched when the package is built, and again where they are not those of this version."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "hatch_build.py"


def archive(content: bytes) -> bytes:
    """A package of npm with one file."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as members:
        member = tarfile.TarInfo("package/dist/a.js")
        member.size = len(content)
        members.addfile(member, io.BytesIO(content))
    return written.getvalue()


class Npm:
    """Stands in for npm: each version of its package has other content."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.archives = {f"a@{version}": archive(f"version {version}".encode()) for version in (1, 2)}

    def run(self, command: list[str], *, cwd: str, **_: Any) -> None:
        self.asked.append(command[-1])
        (Path(cwd) / "a.tgz").write_bytes(self.archives[command[-1]])

    def wants(self, version: int) -> dict[str, Any]:
        package = f"a@{version}"
        return {package: (hashlib.sha256(self.archives[package]).hexdigest(), {"dist/a.js": "a.js"})}


@pytest.fixture
def npm() -> Npm:
    return Npm()


@pytest.fixture
def hook(npm: Npm, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The build's module, with a stand-in for hatchling's class."""
    interface: Any = ModuleType("interface")
    interface.BuildHookInterface = list
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", interface)
    for name in ("hatchling", "hatchling.builders", "hatchling.builders.hooks", "hatchling.builders.hooks.plugin"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    specification = importlib.util.spec_from_file_location("hatch_build", SOURCE)
    assert specification is not None
    assert specification.loader is not None
    module: Any = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(subprocess, "run", npm.run)
    return module


def test_what_is_there_is_not_fetched_again(hook: Any, npm: Npm, tmp_path: Path) -> None:
    hook.PACKAGES = npm.wants(1)
    for _ in range(2):
        hook.fetch(tmp_path)
    assert npm.asked == ["a@1"]
    assert (tmp_path / "a.js").read_text() == "version 1"


def test_the_files_are_those_of_the_wanted_version(hook: Any, npm: Npm, tmp_path: Path) -> None:
    for version in (1, 2, 1):  # back, as with another branch
        hook.PACKAGES = npm.wants(version)
        hook.fetch(tmp_path)
        assert (tmp_path / "a.js").read_text() == f"version {version}"


@pytest.mark.parametrize("damage", [lambda file: file.write_text("other"), Path.unlink])
def test_a_changed_file_is_fetched_again(hook: Any, npm: Npm, tmp_path: Path, damage: Any) -> None:
    hook.PACKAGES = npm.wants(1)
    hook.fetch(tmp_path)
    damage(tmp_path / "a.js")
    hook.fetch(tmp_path)
    assert (tmp_path / "a.js").read_text() == "version 1"


def test_an_archive_with_other_content_is_refused(hook: Any, npm: Npm, tmp_path: Path) -> None:
    hook.PACKAGES = npm.wants(1)
    npm.archives["a@1"] = archive(b"other")
    with pytest.raises(ValueError, match="a@1 has SHA-256"):
        hook.fetch(tmp_path)
    assert not (tmp_path / "a.js").exists()
