"""docs/understand/metrics.md names every loss that is counted, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import corevital_otel
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/understand/metrics.md"
CODE = ROOT / "otel" / corevital_otel.__name__


def used(name: str) -> dict[str, set[str]]:
    """The attributes of ``name`` that each module uses."""
    found = {
        str(file.relative_to(CODE)): {
            node.attr
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
        }
        for file in CODE.rglob("*.py")
    }
    return {file: attributes for file, attributes in found.items() if attributes}


def test_the_page_names_every_loss_and_no_other() -> None:
    table = PAGE.read_text().partition("## What can be lost")[2].partition("| --- |")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", table, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == {loss.value for loss in Loss}


def test_the_code_counts_every_loss() -> None:
    assert set().union(*used("Loss").values()) == {loss.name for loss in Loss}


def test_only_one_function_counts_losses() -> None:
    """Besides it only the recorder, for the zeros at the start, and the instruments know the metric's name."""
    assert {file for file, attributes in used("names").items() if "DROPPED" in attributes} == {
        "counters.py", "metrics/recorder.py", "metrics/instruments.py",
    }  # fmt: skip


@pytest.mark.parametrize("loss", Loss)
def test_a_loss_is_counted_under_its_own_labels(loss: Loss) -> None:
    counters = Counters()
    counters.count_loss(loss, 0)
    assert counters.snapshot() == {}
    counters.count_loss(loss, 2)
    counters.count_loss(loss)
    what, why = loss.value
    assert counters.lost(loss) == counters.get(names.DROPPED, what=what, why=why) == counters.get(names.DROPPED) == 3
