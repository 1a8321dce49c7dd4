"""The parts of a chat answer: reasoning and calls of tools, by the marks of the server's parsers.

They are looked for once, among the ids of an ended sequence: about a microsecond for a thousand tokens, and nothing
where a server has no parser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from corevital.engines.vllm import calls, reasoning
from corevital.engines.vllm.tool_calls import ToolMarks, marks_of
from corevital.frames.lifecycle import Segment
from corevital.guard import guarded


class Parts:
    """Finds them.

    Args:
        vllm_config: vLLM's configuration.
        tokenizer: the model's; None where vLLM was started without.
    """

    def __init__(self, vllm_config: Any, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._reasoning = reasoning.counter(vllm_config, tokenizer)
        self._tools: dict[Any, ToolMarks | None] = {}  # by vLLM's parser, of which a server has one

    def expected(self, call: calls.Call | None) -> bool:
        """Whether an output of this call may have any. Only chat's outputs are read by parsers."""
        if call is None or call.entry.operation != "chat":
            return False
        if self._reasoning is not None:
            return True
        return call.tools is not None and (call.tools.whole or self._marks(call.tools.parser) is not None)

    @guarded("the parts of an output")
    def find(
        self, call: calls.Call | None, token_ids: Sequence[int], prompt_token_ids: Sequence[int] | None
    ) -> tuple[int | None, tuple[Segment, ...]]:
        """The number of reasoning tokens, None where no parser looks for them; and the parts.

        Returns None after an error, which must not keep the sequence's end from being reported.
        """
        if call is None or not self.expected(call):
            return None, ()
        found, count = [], None
        if self._reasoning is not None:
            found = self._reasoning.segments(token_ids, prompt_token_ids)
            count = sum(part.end - part.start for part in found if part.kind == "reasoning")
        if call.tools is not None and call.tools.whole:
            found.append(Segment("tool_call", 0, len(token_ids)))  # what belongs to nothing else
        elif call.tools is not None and (marks := self._marks(call.tools.parser)) is not None:
            first = 0
            for part in [*found, Segment("mark", len(token_ids), len(token_ids))]:
                found += marks.segments(token_ids, first, part.start)
                first = part.end
        return count, tuple(found)

    def _marks(self, parser: Any) -> ToolMarks | None:
        if parser not in self._tools:
            self._tools[parser] = marks_of(parser, self._tokenizer)
        return self._tools[parser]
