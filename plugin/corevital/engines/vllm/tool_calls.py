"""Which tokens of an answer call tools, by the marks that vLLM's tool parser looks for.

vLLM reads calls out of the text in its serving layer, for the client alone. With nearly every model a mark
(``<tool_call>``, ``[TOOL_CALLS]``) is one token, and the ids are enough. Parsers name their marks in several ways; one
whose marks are not found, or take several tokens, leaves calls of tools in the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from corevital.frames.lifecycle import Segment
from corevital.log import warn_once

_FORCED: Final = ("required", "any", "tool", "function", "custom")
"""Choices, or types of one, with which the answer must be a call."""
_NAMES: Final = (
    ("tool_calls_start_token", ("tool_calls_end_token", "tool_call_end_token")),
    ("tool_call_start_token", ("tool_call_end_token",)),
    ("tool_calls_section_begin", ("tool_calls_section_end",)),
    ("bot_token", ()),
)
"""Attributes of vLLM's parsers: the first mark, and the last one. Without it a call goes on to the output's end."""


class Tools(NamedTuple):
    """The tools of a client's call.

    Attributes:
        parser: vLLM's class that reads calls out of an answer; None: no call is read out of it.
        whole: the answer can be nothing but a call, without marks: its grammar is that of a call.
    """

    parser: Any
    whole: bool


class ToolMarks(NamedTuple):
    """Ids of the tokens that begin and end a call; None where nothing ends it but the output."""

    start: int
    end: int | None

    def segments(self, token_ids: Sequence[int], first: int, last: int) -> list[Segment]:
        """The calls in a part of an output, and their marks."""
        found: list[Segment] = []
        while (start := _find(token_ids, self.start, first, last)) < last:
            end = last if self.end is None else _find(token_ids, self.end, start + 1, last)
            found.append(Segment("mark", start, start + 1))
            if end > start + 1:
                found.append(Segment("tool_call", start + 1, end))
            if end < last:
                found.append(Segment("mark", end, end + 1))
            first = end + 1
        return found


def tools_of(serving: Any, request: Any) -> Tools | None:
    """The tools of a request to one of vLLM's serving objects; None where it has none, or must not call them."""
    if not getattr(request, "tools", None):
        return None
    choice = getattr(request, "tool_choice", None)
    kind = choice if isinstance(choice, str) else getattr(choice, "type", None)
    kind = kind.lower() if isinstance(kind, str) else ""
    if kind == "none":
        return None
    parsers = getattr(serving, "parser_cls", None) or getattr(serving, "parser", None)
    parser = getattr(parsers, "tool_parser_cls", None)
    whole = (
        kind in _FORCED
        and bool(getattr(parser, "supports_required_and_named", True))
        and getattr(parser, "structural_tag_model", None) != "harmony"  # it reasons, and has marks, before the call
    )
    return Tools(parser, whole)


def marks_of(parser: Any, tokenizer: Any) -> ToolMarks | None:
    """The marks of one of vLLM's tool parsers; None where they are not one token each, or are not found.

    Args:
        parser: its class.
        tokenizer: the model's.
    """
    if parser is None or tokenizer is None:
        return None
    try:
        return _marks(parser(tokenizer), tokenizer.get_vocab())
    except Exception:  # it needs what only vLLM's serving layer has, or is made in an unusual way
        warn_once("tool marks", "calls of tools are counted as answers: the marks of vLLM's tool parser %s cannot "
                  "be read", getattr(parser, "__name__", parser))  # fmt: skip
        return None


def _marks(made: Any, vocabulary: Mapping[str, int]) -> ToolMarks | None:
    for first, lasts in _NAMES:
        start = vocabulary.get(_text(getattr(made, first, None)))
        if start is not None:
            ends = (vocabulary.get(_text(getattr(made, last, None))) for last in lasts)
            return ToolMarks(start, next((end for end in ends if end is not None), None))
    terminals = getattr(getattr(getattr(made, "_parser_engine", None), "parser_engine_config", None), "terminals", {})
    start, end = (vocabulary.get(_text(terminals.get(name))) for name in ("TOOL_START", "TOOL_END"))
    return None if start is None else ToolMarks(start, end)


def _text(mark: Any) -> str:
    """A parser's mark as a token; the first of several ways to write it."""
    mark = mark[0] if isinstance(mark, tuple) and mark else mark
    return mark.strip() if isinstance(mark, str) else ""


def _find(token_ids: Sequence[int], token: int, first: int, last: int) -> int:
    """Where a token is from ``first`` on; ``last`` where it is not before that."""
    try:
        return token_ids.index(token, first, last)
    except ValueError:
        return last
