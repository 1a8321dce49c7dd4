"""Each engine's folder supplies the eight things of the protocol, and they are what is used."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import corevital
from corevital.engines import protocol

PLUGIN = Path(corevital.__file__).parent
ENGINES = sorted(path.parent for path in PLUGIN.glob("engines/*/__init__.py"))
MEMBERS = {name for name in vars(protocol.Engine) if not name.startswith("_")}


def used(file: Path) -> set[str]:
    """Names that a module reads, as names or attributes."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_the_protocol_has_the_eight_things() -> None:
    assert {
        "register", "facts", "follow", "carry", "carried", "observe", "reports", "request_args", "STAGES",
    } == MEMBERS  # fmt: skip


def test_there_are_engines_to_test() -> None:
    assert ENGINES


@pytest.mark.parametrize("folder", ENGINES, ids=lambda folder: folder.name)
def test_an_engine_s_module_has_every_member_with_the_protocol_s_parameters(folder: Path) -> None:
    engine = importlib.import_module(f"corevital.engines.{folder.name}.engine")
    assert set(engine.__all__) == MEMBERS
    for name in MEMBERS - {"STAGES"}:
        wanted = list(inspect.signature(getattr(protocol.Engine, name)).parameters)[1:]
        assert list(inspect.signature(getattr(engine, name)).parameters) == wanted, name
    for runner, stage in engine.STAGES.items():
        assert isinstance(runner, str)
        assert stage in ("raw", "post_penalty", "pre_grammar")


@pytest.mark.parametrize("folder", ENGINES, ids=lambda folder: folder.name)
def test_every_member_is_used(folder: Path) -> None:
    entry = used(PLUGIN / "entry.py")
    assert {"register", "facts", "follow"} <= entry
    others = set().union(*(used(file) for file in folder.glob("*.py")))
    assert entry | others >= MEMBERS
