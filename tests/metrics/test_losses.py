"""docs/metrics.md names every loss that is counted, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import corevital_otel
from corevital_otel.metrics.recorder import KNOWN_LOSSES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/metrics.md"


def counted() -> set[tuple[str, str]]:
    """What and why of each place in the code that counts a loss."""
    found = set()
    for file in (ROOT / "otel" / corevital_otel.__name__).rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            named = {keyword.arg: texts(keyword.value) for keyword in call.keywords}
            if call.func.attr == "_drop":
                whats = texts(call.args[1]) if len(call.args) == 3 else {"report"}  # the store's own
                found |= {(what, why) for what in whats for why in texts(call.args[-1])}
            elif call.func.attr == "add" and named.get("why"):
                found |= {(what, why) for what in named["what"] for why in named["why"]}
    return found


def texts(expression: ast.expr) -> set[str]:
    return {
        node.value for node in ast.walk(expression) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_loss_that_is_counted_is_on_the_page() -> None:
    table = PAGE.read_text().partition("## What can be lost")[2].partition("| --- |")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", table, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == counted()
    assert set(KNOWN_LOSSES) <= set(rows)
