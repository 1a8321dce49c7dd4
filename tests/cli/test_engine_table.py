"""``corevital doctor``'s table of engines, on packages that the metadata of an environment lists."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital.supported import CHECKED
from corevital_otel.cli.engine_table import rows
from corevital_otel.cli.engines import ADAPTERS, is_checked, span

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Installs the metadata of a package, and nothing else. Returns its folder, for ``PYTHONPATH``."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def install(name: str, version: str) -> str:
        folder = tmp_path / "site" / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return str(folder.parent)

    return install


def test_each_engine_with_tested_versions_is_in_the_table() -> None:
    assert set(CHECKED) <= {adapter.attribute for adapter in ADAPTERS} == {"vllm", "sglang", "tgi", "transformers"}
    assert all(adapter.hidden for adapter in ADAPTERS)


@pytest.mark.parametrize(
    ("version", "status"), [("5.19.3", "ok"), ("4.57.6", "warn"), ("6.0", "warn"), ("odd", "warn")]
)
def test_an_installed_engine_is_judged_by_the_versions_tested(
    installed: Callable[[str, str], str], version: str, status: str
) -> None:
    installed("transformers", version)
    (row,) = [row for row in rows({}) if row.adapter.name == "transformers"]
    assert (row.status, row.installed, row.tested) == (status, f"transformers {version}", "5.0 to 5.19")
    assert row.attach.startswith("with Monitor()")


@pytest.mark.parametrize(
    ("found", "is_tested"),
    [("0.5.19", True), ("0.5.23.post1", True), ("0.5.18", False), ("0.5.24", False), ("x", False)],
)
def test_a_third_number_counts_where_the_tested_versions_have_one(found: str, is_tested: bool) -> None:
    checked = ((0, 5, 19), (0, 5, 23))
    assert is_checked(found, checked) is is_tested
    assert span(checked) == "0.5.19 to 0.5.23"


def test_attached_engines_are_those_that_the_variable_names(installed: Callable[[str, str], str]) -> None:
    installed("sglang", "0.5.23")
    found = {row.adapter.name: row for row in rows({"COREVITAL_ATTACH": "SGLang, tgi"})}
    assert found["SGLang"].attach == "COREVITAL_ATTACH=sglang: set"
    assert found["SGLang"].is_installed
    assert found["TGI"].status == "warn"
    assert found["TGI"].attach == "COREVITAL_ATTACH=tgi is set, and TGI is not installed here"
    found = {row.adapter.name: row for row in rows({})}
    assert found["SGLang"].attach == "set COREVITAL_ATTACH=sglang"
    assert (found["TGI"].status, found["TGI"].attach) == ("none", "set COREVITAL_ATTACH=tgi")


def test_the_doctor_prints_it_and_names_a_wrong_engine(cli: Cli, installed: Callable[[str, str], str]) -> None:
    path = ":".join([installed("transformers", "5.19.0"), *sys.path])
    done = cli("doctor", "--json", "--url", "http://127.0.0.1:9", COREVITAL_ATTACH="sglang,vlm", PYTHONPATH=path)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert [name for name in checks if name.startswith("engine ")] == [f"engine {each.name}" for each in ADAPTERS]
    assert checks["COREVITAL_ATTACH"]["status"] == "warn"
    assert "unknown engine 'vlm', ignored: use sglang or tgi" in checks["COREVITAL_ATTACH"]["text"]
    if checks["engine vLLM"]["status"] == "none":
        assert "engine" not in checks, "no fault where another engine is installed"
    lines = cli("doctor", "--url", "http://127.0.0.1:9", PYTHONPATH=path).stdout.splitlines()
    assert lines[0].split() == ["engine", "installed", "tested", "attach", "not", "seen"]
    assert any("transformers 5.19.0" in line for line in lines[1:])
