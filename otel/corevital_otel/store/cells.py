"""Values as cells of a CSV file that a spreadsheet may open."""

from __future__ import annotations

import re
from typing import Final

import pydantic_core

# At the start of a text, and behind what some spreadsheets take for the end of a cell. See "CSV injection" of OWASP.
_FORMULA: Final = re.compile(r"(^|[;\t\r\n])(?=[\s\0\"']{0,16}[=+\-@＝＋－＠])")  # noqa: RUF001 - full-width ones
_SEPARATOR: Final = re.compile(r"[;\t\r\n]")


def text(value: str) -> str:
    """A text that no spreadsheet takes for a formula: ``'`` stands before ``=``, ``+``, ``-`` and ``@``."""
    if value[:1].isalnum() and not _SEPARATOR.search(value):  # most texts
        return value
    return _FORMULA.sub(r"\1'", value)


def cell(value: object) -> str:
    """Any value: "" for None, ``true`` and ``false``, numbers unchanged, bytes in hex, a list as JSON."""
    kind = type(value)
    if kind is str:
        return text(str(value))
    if value is None:
        return ""
    if kind is float or kind is int:
        return repr(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.hex()
    return text(pydantic_core.to_json(value, inf_nan_mode="null").decode())
