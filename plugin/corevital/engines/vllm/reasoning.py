"""Which tokens of an answer are reasoning, by the marks that vLLM's reasoning parser looks for.

vLLM counts them itself only for a client's ``usage``, in its serving layer, after the engine has ended the sequence:
too late for us, per request and not per sequence, and for many parsers by reading the whole text again. The marks
(``<think>``, ``</think>``) are one token each with nearly every model. Looking for them among the ids takes about a
microsecond for a thousand tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from corevital.frames.lifecycle import Segment
from corevital.guard import guarded
from corevital.log import warn_once

_TAIL: Final = 16
"""Tokens at a prompt's end among which a chat template may have put a mark."""


class ReasoningCounter:
    """Finds and counts the tokens between two marks.

    Args:
        start, end: ids of the marks.
    """

    def __init__(self, start: int, end: int) -> None:
        self._start, self._end = start, end

    @guarded("the count of reasoning tokens")
    def count(self, token_ids: Sequence[int], prompt_token_ids: Sequence[int] | None) -> int:
        """Tokens of the output that are reasoning, without the marks.

        An output may begin inside the reasoning: its template ended the prompt with the first mark, or the model leaves
        that one out. It may also end there, at its length limit.

        Args:
            token_ids: the output.
            prompt_token_ids: the prompt; None where the engine was given embeddings.

        Returns:
            Their number; None after an error, which must not keep the sequence's end from being reported.
        """
        found = self.segments(token_ids, prompt_token_ids)
        return sum(part.end - part.start for part in found if part.kind == "reasoning")

    def segments(self, token_ids: Sequence[int], prompt_token_ids: Sequence[int] | None) -> list[Segment]:
        """The reasoning and its marks, in order; see :meth:`count`."""
        found, length = list[Segment](), len(token_ids)
        first, last = _find(token_ids, self._start, 0), _find(token_ids, self._end, 0)
        inside, at = last < first or self._is_open(prompt_token_ids), 0
        while at < length:
            if not inside:
                at = _find(token_ids, self._start, at)
            while at < length and token_ids[at] == self._start:  # again, perhaps: the prompt may have begun it
                found.append(Segment("mark", at, at + 1))
                at += 1
            end = _find(token_ids, self._end, at)
            if end > at:
                found.append(Segment("reasoning", at, end))
            if end < length:
                found.append(Segment("mark", end, end + 1))
            at, inside = end + 1, False
        return found

    def _is_open(self, prompt_token_ids: Sequence[int] | None) -> bool:
        """Whether the prompt ends inside the reasoning."""
        for token in reversed((prompt_token_ids or ())[-_TAIL:]):
            if token in (self._start, self._end):
                return token == self._start
        return False


def _find(token_ids: Sequence[int], token: int, at: int) -> int:
    """Where a token is from ``at`` on; the length where it is not."""
    try:
        return token_ids.index(token, at)
    except ValueError:
        return len(token_ids)


def counter(vllm_config: Any, tokenizer: Any) -> ReasoningCounter | None:
    """A counter by the server's ``--reasoning-parser``; None where there is none, or its marks are not one token each.

    Args:
        vllm_config: vLLM's configuration.
        tokenizer: the model's; None where vLLM was started without.
    """
    name = getattr(getattr(vllm_config, "structured_outputs_config", None), "reasoning_parser", None)
    if not name or tokenizer is None:
        return None
    try:
        from vllm.reasoning import ReasoningParserManager

        parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer)
        vocabulary = tokenizer.get_vocab()
        start, end = (
            vocabulary.get((getattr(parser, mark, None) or "").strip())
            for mark in ("reasoning_start_str", "reasoning_end_str")
        )
    except Exception:  # not in this version, or it needs what only vLLM's serving layer has
        start = end = None
    if start is None or end is None:
        warn_once("reasoning", "reasoning tokens are not counted: the marks of the reasoning parser %s are not one "
                  "token each, or this vLLM does not show them", name)  # fmt: skip
        return None
    return ReasoningCounter(start, end)
