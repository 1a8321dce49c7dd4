"""The messages of the code: what it logs, and the errors that a user reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

LOGGING = {"debug": 0, "info": 0, "warning": 0, "error": 0, "exception": 0, "warn_once": 1}
"""Functions that log, and which of their arguments is the message."""


class Message(NamedTuple):
    """A message and the line of its call; ``{}`` stands for a value put into it."""

    line: int
    text: str


def messages(source: str) -> Iterator[Message]:
    """The constant messages of logging calls, and of exceptions whose class is called ``...Error``."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = str(getattr(node.func, "attr", getattr(node.func, "id", "")))
        place = 0 if name.endswith("Error") else LOGGING.get(name)
        if place is not None and len(node.args) > place and (text := constant(node.args[place])):
            yield Message(node.lineno, text)


def constant(node: ast.expr) -> str | None:
    """The text of a string or an f-string; None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(constant(part) or "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
