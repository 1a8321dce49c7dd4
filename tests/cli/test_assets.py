"""``corevital assets``: the repository's files, written without a repository, over no file that somebody changed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corevital_otel import asset_files

ROOT = Path(__file__).resolve().parents[2]
SUMS = ".corevital-assets.sha256"
Command = Callable[..., Any]


def expected() -> dict[str, bytes]:
    """What the repository has: by git where this is a clone, else what lies in the folder."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "dashboards"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
        names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    else:
        names = [path.relative_to(ROOT).as_posix() for path in (ROOT / "dashboards").rglob("*") if path.is_file()]
    names = [n for n in names if not n.startswith("dashboards/schema/") and "__pycache__" not in n]
    return {name: (ROOT / name).read_bytes() for name in [*names, "docker-compose.otel.yml", ".env.example"]}


def written(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != SUMS]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_each_file_is_the_repository_s(command: Command, tmp_path: Path) -> None:
    done = command("assets", "--out", "new/stack")
    assert done.status == 0, done
    assert written(tmp_path / "new/stack") == expected()
    assert f"new/stack: {len(expected())} files of corevital " in done.output
    assert stat.S_IMODE((tmp_path / "new/stack/dashboards/make_env.sh").stat().st_mode) & 0o100
    checked = ["sha256sum", "--check", "--quiet", SUMS]
    subprocess.run(checked, cwd=tmp_path / "new/stack", check=True, timeout=30)
    assert "0 files of corevital" in command("assets", "--out", "new/stack").output


@pytest.mark.parametrize("name", ["secrets", "schema", "__pycache__"])
def test_nothing_secret_and_nothing_of_the_tests_is_listed(tmp_path: Path, name: str) -> None:
    for file in ("docker-compose.otel.yml", ".env.example", "dashboards/config.toml", f"dashboards/collector/{name}/x"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x")
    assert list(asset_files.in_repository(tmp_path)) == [
        ".env.example", "dashboards/config.toml", "docker-compose.otel.yml",
    ]  # fmt: skip
    (tmp_path / "docker-compose.otel.yml").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no docker-compose\.otel\.yml"):
        asset_files.in_repository(tmp_path)


def test_passwords_and_dashboards_can_be_made_in_the_folder(command: Command, tmp_path: Path) -> None:
    command("assets", "--out", "stack")
    stack = tmp_path / "stack"
    subprocess.run(["sh", "dashboards/make_env.sh"], cwd=stack, check=True, capture_output=True, timeout=30)
    assert stat.S_IMODE((stack / ".env").stat().st_mode) == 0o600
    config = stack / "dashboards/config.toml"
    changed = config.read_text().replace('"0.05"', '"0.06"').replace("0.05", "0.06")
    assert changed != config.read_text()
    config.write_text(changed)
    before = written(stack)
    path = os.pathsep.join(part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part != str(ROOT))
    subprocess.run(
        [sys.executable, "-m", "dashboards.source"],
        cwd=stack,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        timeout=120,
    )
    after = written(stack)
    assert "dashboards/prometheus/alerts.rules.yml" in {name for name in before if before[name] != after[name]}


def test_a_changed_file_is_never_overwritten_unasked(command: Command, tmp_path: Path) -> None:
    command("assets", "--out", "stack")
    targets = tmp_path / "stack/dashboards/prometheus/targets/vllm.yml"
    shipped = targets.read_bytes()
    targets.write_text("- targets: [mine:8000]\n")
    done = command("assets", "--out", "stack")
    assert done.status == 0, "this version brings nothing new for it"
    assert targets.read_text() == "- targets: [mine:8000]\n"
    assert done.error == (
        "corevital: kept your changes in dashboards/prometheus/targets/vllm.yml: --force overwrites them\n"
    )
    command("assets", "--out", "stack", "--force")
    assert targets.read_bytes() == shipped


def test_an_upgrade_replaces_what_nobody_changed_and_refuses_the_rest(command: Command, tmp_path: Path) -> None:
    """A former version: its checksums, and its content of two files; a third is its own alone."""
    command("assets", "--out", "stack")
    stack, mine, theirs = tmp_path / "stack", "dashboards/config.toml", "dashboards/tempo/tempo.yaml"
    gone = "dashboards/runbooks/Former.md"
    for name in (mine, theirs, gone):
        (stack / name).write_text("of the former version\n")
    lines = [line for line in (stack / SUMS).read_text().splitlines() if not line.endswith((mine, theirs))]
    summed = subprocess.run(["sha256sum", mine, theirs, gone], cwd=stack, capture_output=True, text=True, check=True)
    (stack / SUMS).write_text("\n".join([*lines, *summed.stdout.splitlines()]) + "\n")
    (stack / mine).write_text("of the former version, and mine\n")

    done = command("assets", "--out", "stack")
    assert done.status == 1
    assert done.error == (
        f"stack has other content in {mine}: nothing was written; write to another --out and compare, or overwrite "
        "with --force"
    )
    assert (stack / theirs).read_text() == "of the former version\n", "nothing was written"
    (stack / mine).write_text("of the former version\n")
    done = command("assets", "--out", "stack")
    assert "2 files of corevital" in done.output
    assert f"no longer has {gone}: delete what you do not use" in done.error
    (stack / gone).unlink()
    assert written(stack) == expected()


def test_files_of_others_are_neither_overwritten_nor_read_as_ours(command: Command, tmp_path: Path) -> None:
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack/docker-compose.otel.yml").write_text("services: {}\n")
    (tmp_path / "stack" / SUMS).write_text("no checksum\n\xff\n../outside\n")
    done = command("assets", "--out", "stack")
    assert done.status == 1
    assert "stack has other content in docker-compose.otel.yml: nothing was written" in done.error
    assert not (tmp_path / "stack/dashboards").exists()


def test_a_target_that_cannot_be_written_is_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, cause in (("file", "it is a file"), ("file/below", "Not a directory"), ("/proc/x", "No such file")):
        done = command("assets", "--out", out)
        assert done.status == 1
        assert done.error.startswith(f"{out} cannot be written ({cause}")
        assert done.error.endswith("fix that, or name another folder with --out")
        assert "\n" not in done.error
    (tmp_path / "stack/dashboards/config.toml").mkdir(parents=True)
    assert "(Is a directory" in command("assets", "--out", "stack").error


def test_an_installation_without_them_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(asset_files, "__file__", str(tmp_path / "lib/python/corevital_otel/asset_files.py"))
    done = command("assets", "--out", "stack")
    assert done.status == 1
    assert done.error.startswith("this installation lacks its assets (")
    assert done.error.endswith("install corevital again")
