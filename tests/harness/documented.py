"""The attributes that docs/understand/spans.md documents, to compare with those sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.harness.processes import ROOT

PAGE = ROOT / "docs/understand/spans.md"


@dataclass(frozen=True)
class Entry:
    """An attribute by the page: its type, when it is there, and the event it belongs to, if any."""

    name: str
    type: str
    present: str
    event: str = ""


def section(title: str) -> dict[str, Entry]:
    """The attributes in a section's table, by name."""
    text = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if "| `" in line]
    entries = [Entry(cells[-5], cells[-4], cells[-2], cells[0] if len(cells) == 6 else "") for cells in rows]
    return {f"{entry.event} {entry.name}".strip(): entry for entry in entries}


def check(found: dict[str, Any], *titles: str) -> None:
    """Fail where attributes are not as the page's sections say: one that is not there, of another type, or missing."""
    entries = {name: entry for title in titles for name, entry in section(title).items()}
    assert entries
    assert not found.keys() - entries.keys(), "not on the page"
    assert not {name for name, entry in entries.items() if entry.present == "always"} - found.keys(), "not always"
    types = {name: type_of(value) for name, value in found.items()}
    assert types == {name: entries[name].type for name in found}


def type_of(value: Any) -> str:
    """OTLP's name of a value's type; of an empty list, that of the strings it would hold."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"{type_of(next(iter(value), ''))}[]"
    return {bool: "bool", int: "int", float: "double", str: "string"}[type(value)]
