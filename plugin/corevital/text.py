"""Text of others (clients, backends, files) on its way to a terminal, a log or the store.

- :func:`printable`: for people to read. Nothing in it can steer a terminal or forge a line.
- :func:`cut`: for keeping. Valid UTF-8 of a bounded length.
"""

from __future__ import annotations

import re
from typing import Final

MAX_BYTES: Final = 256
"""Bytes of UTF-8 that are kept of an id, a name or a tag. docs/understand/spans.md documents it."""

MAX_SHOWN: Final = 400
"""Characters that are shown of a message of others."""

# C0, DEL, C1; line and paragraph separator; marks and overrides of writing direction; halves of surrogate pairs
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: object, limit: int | None = None) -> str:
    """``text`` in one line, with what is unprintable escaped as ``repr`` does (``\\n``, ``\\x1b``, ``\\u2028``).

    Args:
        text: any object; its ``str``.
        limit: characters shown at most; the rest is replaced by an ellipsis.
    """
    shown = str(text)
    if limit is not None and len(shown) > limit:
        shown = f"{shown[: limit - 1]}…"
    return _UNPRINTABLE.sub(_escaped, shown)


def printable_json(document: str) -> str:
    """A JSON document, whose strings may hold anything, without unprintable characters. The same document."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", document)


def printable_lines(text: str) -> str:
    """As :func:`printable`, for text of several lines: line feeds and tabs stay."""
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in "\n\t" else _escaped(match), text)


def _escaped(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1]


def cut(text: str, limit: int = MAX_BYTES) -> str:
    """The beginning of ``text`` that takes at most ``limit`` bytes of UTF-8, never half a character.

    What UTF-8 cannot hold (half a surrogate pair) becomes ``?``.
    """
    data = text[:limit].encode("utf-8", "replace")
    return data[:limit].decode("utf-8", "ignore")
