"""SECURITY.md: each party is there, each row has its test, each test exists; and the linter's security rules are on."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
PARTIES = (
    "A client of the server", "Tenants of one server", "A neighbour process", "A neighbour container",
    "A collector or backend", "A person with the store's file",
)  # fmt: skip
TEST = re.compile(r"`((?:tests|integration)/[\w/]+\.py)::(\w+)`")


def rows(party: str) -> list[list[str]]:
    """The cells of each row of a party's table, without its head."""
    section = PAGE.split(f"\n### {party}\n")[1].split("\n### ")[0].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [line.strip("| ").split(" | ") for line in lines[1:]]


@pytest.mark.parametrize("party", PARTIES)
def test_each_row_has_its_test_and_each_party_something_left(party: str) -> None:
    assert len(rows(party)) >= 4
    for *_, tests in rows(party):
        assert TEST.search(tests), tests
        assert TEST.sub("", tests).strip(", ") == "", "the last column has tests alone"
    section = PAGE.split(f"\n### {party}\n")[1].split("\n### ")[0]
    assert "\nLeft:\n\n- " in section


def test_each_named_test_exists() -> None:
    named = TEST.findall(PAGE)
    assert len(named) > 50
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
    assert len(re.findall(r"\.py::", PAGE)) == len(named), "each is written so that this test finds it"


def test_the_linter_s_security_rules_are_on_and_each_exclusion_has_a_reason() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert not [rule for rule in lint["ignore"] if re.match(r"S\d", rule)]
    assert set(lint["per-file-ignores"]) == {"tests/**", "integration/**"}
    for half in ("plugin", "otel", "dashboards/source"):
        for file in (ROOT / half).rglob("*.py"):
            for line in file.read_text().splitlines():
                assert not re.search(r"# noqa: S\d+\s*$", line), f"{file}: {line.strip()} has no reason"
