"""Finds the phrases of ``words.toml`` in the prose of this repository's files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from tests.english.prose import prose

ROOT = Path(__file__).resolve().parents[2]
LIST = tomllib.loads(Path(__file__).with_name("words.toml").read_text())
EXCEPTIONS: list[dict[str, str]] = LIST.get("exception", [])
PLACES = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "pyproject.toml", "constraints.txt",
    "conftest.py", "docker-compose.otel.yml", ".env.example", ".pre-commit-config.yaml", ".ci", "dashboards", "docs",
    "integration", "otel", "plugin", "tests",
)  # fmt: skip
"""Files, and folders that are read whole."""
SUFFIXES = (".md", ".py", ".yml", ".yaml", ".toml", ".sh", ".txt", "")
"""Of files that people write."""


class Word(NamedTuple):
    """A phrase to avoid."""

    find: re.Pattern[str]
    instead: str
    example: str
    fine: list[str]


class Hit(NamedTuple):
    """A phrase that was found."""

    file: str
    line: int
    phrase: str
    instead: str

    def __str__(self) -> str:
        return f'{self.file}:{self.line}: "{self.phrase}": write {self.instead}'


def word(entry: dict[str, Any]) -> Word:
    """A phrase as the list has it."""
    pattern = re.compile(entry["find"].replace(" ", r"\s+"), re.IGNORECASE)
    return Word(pattern, entry["instead"], entry["example"], entry.get("fine", []))


WORDS = [word(entry) for entry in LIST["word"]]
ANY_WORD = re.compile("|".join(f"(?:{each.find.pattern})" for each in WORDS), re.IGNORECASE)
"""All phrases at once: most blocks have none."""


def hits(name: str, source: str, exceptions: list[dict[str, str]] = EXCEPTIONS) -> Iterator[Hit]:
    """The phrases in a file of this name."""
    excepted = [entry.get("quote") for entry in exceptions if fnmatch(name, entry["file"])]
    if None in excepted:
        return
    for line, text in prose(name, source):
        if not ANY_WORD.search(text):
            continue
        for each in WORDS:
            for found in each.find.finditer(text):
                if not any(quote and within(found, quote, text) for quote in excepted):
                    number = line + text.count("\n", 0, found.start())
                    yield Hit(name, number, " ".join(found[0].split()), each.instead)


def within(found: re.Match[str], quote: str, text: str) -> bool:
    """Whether a phrase is part of a quote."""
    start = text.find(quote)
    while start >= 0:
        if start <= found.start() and found.end() <= start + len(quote):
            return True
        start = text.find(quote, start + 1)
    return False


def files(places: tuple[str, ...] | list[str] = PLACES, root: Path = ROOT) -> Iterator[Path]:
    """The files in these places that people write."""
    for place in places:
        start = root / place
        for file in sorted(start.rglob("*")) if start.is_dir() else [start]:
            if file.is_file() and file.suffix in SUFFIXES and "__pycache__" not in file.parts:
                yield file


def check(places: tuple[str, ...] | list[str] = PLACES, root: Path = ROOT) -> list[Hit]:
    """Every phrase in these files and folders."""
    return [hit for file in files(places, root) for hit in hits(str(file.relative_to(root)), file.read_text())]
