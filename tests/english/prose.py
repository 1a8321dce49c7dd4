"""The prose of a file: what people read in it, without its code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

MARKDOWN = MarkdownIt("commonmark").enable("table")
BREAKS = ("softbreak", "hardbreak")
PYTHON = re.compile(
    r"""
      (?P<prefix>\b[rRbBfFuU]{1,2})? (?:
        \"{3} (?P<double3>(?:\\.|[^\\])*?) \"{3} | '{3} (?P<single3>(?:\\.|[^\\])*?) '{3} |
        " (?P<double>(?:\\.|[^"\\\n])*) " | ' (?P<single>(?:\\.|[^'\\\n])*) '
      )
    | \# (?P<comment>[^\n]*)
    | \b (?:def|class) \s+ (?P<name>\w+)
    """,
    re.VERBOSE | re.DOTALL,
)
STRINGS = ("double3", "single3", "double", "single")


class Prose(NamedTuple):
    """A run of text, with the line in which it begins; a line break in it is one in the file."""

    line: int
    text: str


def prose(name: str, source: str) -> Iterator[Prose]:
    """The prose of a file.

    - Markdown: paragraphs, headings, lists and tables, without code.
    - Python: comments; docstrings and other strings of more than one word; names of functions and classes.
    - YAML and TOML: all of it.
    - Others (shell, make): comments and double-quoted strings of more than one word.
    """
    suffix = Path(name).suffix
    if suffix == ".md":
        yield from of_markdown(source)
    elif suffix == ".py":
        yield from of_python(source)
    elif suffix in (".yml", ".yaml", ".toml"):
        yield from joined(Prose(number, text.lstrip(" #")) for number, text in numbered(source))
    else:
        yield from of_script(source)


def of_markdown(source: str) -> Iterator[Prose]:
    """The text of each block, without inline code and addresses."""
    for token in MARKDOWN.parse(source):
        if token.type == "inline" and token.map:
            kinds = [("\n" if child.type in BREAKS else child.content, child.type) for child in token.children or ()]
            yield Prose(token.map[0] + 1, "".join(text for text, kind in kinds if kind in ("text", *BREAKS)))


def of_python(source: str) -> Iterator[Prose]:
    """Comments on lines that follow each other are one block, and so are strings with nothing between."""
    blocks: list[tuple[str, Prose]] = []
    line, end = 1, 0
    for found in PYTHON.finditer(source):
        between = source[end : found.start()]
        breaks = between.count("\n")
        line += breaks
        kind, text = parsed(found)
        adjoins = not between.strip() and (breaks < 2 or kind == "string")
        if adjoins and kind != "name" and blocks and blocks[-1][0] == kind:
            before = blocks.pop()[1]
            blocks.append((kind, Prose(before.line, before.text + "\n" * breaks + text)))
        else:
            blocks.append((kind, Prose(line, text)))
        line += found[0].count("\n")
        end = found.end()
    yield from (block for kind, block in blocks if kind != "bytes" and (kind != "string" or " " in block.text))


def parsed(found: re.Match[str]) -> tuple[str, str]:
    """What a match of :data:`PYTHON` is, and its text."""
    if found["comment"] is not None:
        return "comment", found["comment"].lstrip(" :")
    if found["name"]:
        return "name", re.sub(r"_+|(?<=[a-z])(?=[A-Z])", " ", found["name"])
    text = next(found[group] for group in STRINGS if found[group] is not None)
    prefix = (found["prefix"] or "").lower()
    if "f" in prefix:
        text = re.sub(r"\{[^{}]*\}", "{}", text)
    return ("bytes" if "b" in prefix else "string"), text.replace("\\n", " ")


def of_script(source: str) -> Iterator[Prose]:
    """A ``#`` that begins a word begins a comment."""
    found = [(number, re.search(r"(?:^|\s)#[!:]?\s*(.*)", text)) for number, text in numbered(source)]
    yield from joined(Prose(number, comment[1]) for number, comment in found if comment)
    for number, text in numbered(source):
        code = re.sub(r"(?:^|\s)#.*", "", text)
        yield from (Prose(number, quoted) for quoted in re.findall(r'"([^"]* [^"]*)"', code))


def numbered(source: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers."""
    return enumerate(source.split("\n"), 1)


def joined(lines: Iterable[Prose]) -> Iterator[Prose]:
    """Neighbouring lines as one block."""
    block: list[Prose] = []
    for line in lines:
        if block and line.line != block[-1].line + 1:
            yield Prose(block[0].line, "\n".join(text for _, text in block))
            block = []
        block.append(line)
    if block:
        yield Prose(block[0].line, "\n".join(text for _, text in block))
