"""Stop strings, where the engine's core reported the end of a sequence.

The core sees tokens. A frontend that decodes them elsewhere stops at a stop string by aborting the sequence, and to the
core that is an abort like any other, some tokens late. Here the last tokens are decoded as such a frontend does it,
one after the other, and the first stop string that they complete is looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from corevital.frames.lifecycle import Finished, StopRule
from corevital.guard import swallow
from corevital.log import warn_once
from corevital_otel import conventions as names
from corevital_otel.service.tokenizer import pieces, read_tokenizer

STOP_STRING: Final = "stop_string"
"""The stop reason where the string itself may not leave the process."""

_TOKENS: Final = 2048
"""Last tokens of a sequence that are decoded, 2 us each: an abort arrives some tokens after the stop string."""
_BEFORE: Final = 16
"""Tokens before those, which may change how the first ones are written."""
_MOST_S: Final = 0.05
"""Time for one sequence; beyond it the abort stays."""


class StopStrings:
    """The stop strings of one model's requests. One thread makes all calls.

    Args:
        tokenizer: a folder with ``tokenizer.json``, or a name in the local Hugging Face cache.
        revision: of the name; None: ``main``.
        content: stop strings and text may leave the process.
        download_dir: the cache's folder, where it is not the usual one.
    """

    def __init__(self, tokenizer: str, revision: str | None, content: bool, download_dir: str | None = None) -> None:
        self._name = tokenizer
        self._revision = revision
        self._content = content
        self._download_dir = download_dir
        self._tokenizer: Any = None
        self._is_loaded = False

    def load(self) -> bool:
        """Read the tokenizer, once: up to a second for a large vocabulary. Otherwise the first call that needs it does.

        Returns:
            Whether there is one. If not, that was logged.
        """
        if not self._is_loaded:
            self._is_loaded = True
            self._tokenizer = read_tokenizer(
                self._name,
                self._revision,
                self._download_dir,
                without="A request that a stop string ends is reported as aborted",
            )
        return self._tokenizer is not None

    def resolve(self, outcome: Finished, stop: StopRule) -> Finished:
        """The end of a sequence as its client saw it.

        An abort whose text holds a stop string becomes a ``stop``: the tokens after the string, which the client never
        got, are cut off. The token that completes it counts, as in a frontend.

        Args:
            outcome: the end as the core reported it.
            stop: the request's rule.

        Returns:
            The same end, without its rule, where no stop string is found or the tokens cannot be decoded.
        """
        outcome = replace(outcome, stop_rule=None)
        if outcome.reason != "abort" or not stop.stop or len(outcome.token_ids) <= stop.min_tokens or not self.load():
            return outcome
        try:
            found = find_stop(self._tokenizer, outcome.token_ids, stop)
        except Exception:
            swallow("the search for a stop string")
            return outcome
        if found is None:
            return outcome
        return replace(
            outcome,
            reason="stop",
            token_ids=outcome.token_ids[: found.tokens],
            core=replace(outcome.core, stop_reason=found.stop if self._content else STOP_STRING),
            text=found.text if self._content and outcome.text is None else outcome.text,
        )

    def decode_text(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str | None:
        """The text of tokens, of a prompt or an output; of a long one the beginning, as much of it as is kept.

        Returns:
            None where content may not leave the process, or the tokens cannot be decoded.
        """
        if not self._content or not self.load():
            return None
        try:
            first = [int(token) for token in token_ids[: names.CONTENT_CHARACTERS] if token >= 0]
            return str(self._tokenizer.decode(first, skip_special_tokens=skip_special_tokens))
        except Exception:
            swallow("the text of tokens")
            return None


class Found(NamedTuple):
    """A stop string that ended an output.

    Attributes:
        stop: the string.
        tokens: of the output, with the one that completes the string.
        text: what the client got of the output; None where only its end was decoded.
    """

    stop: str
    tokens: int
    text: str | None


def find_stop(tokenizer: Any, token_ids: Sequence[int], rule: StopRule) -> Found | None:
    """The first stop string that the output completes, token by token, after ``min_tokens``.

    Only the last :data:`_TOKENS` tokens are decoded: an earlier stop string would have ended the output there.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
        token_ids: of the output, and what the engine made after the client had it.
        rule: the request's.
    """
    longest = max(map(len, rule.stop))
    begin = max(len(token_ids) - _TOKENS, 0)
    before = (*rule.prompt_end, *token_ids[max(begin - _BEFORE, 0) : begin])[-_BEFORE:]
    known: list[str] = []
    count = begin
    recent = ""  # the last characters before the piece, where a stop string can begin
    found = pieces(
        tokenizer,
        token_ids[begin:],
        before=before,
        skip_special_tokens=rule.skip_special_tokens,
        within_s=_MOST_S,
    )
    for count, piece in enumerate(found, begin + 1):
        text = recent + piece
        match = _match(text, len(recent), rule.stop) if piece and count > rule.min_tokens else None
        if match is not None:
            stop, start = match
            end = start + len(stop) if rule.include_stop_str else start
            whole = "".join((*known, piece))
            return Found(stop, count, None if begin else whole[: len(whole) - len(text) + end])
        known.append(piece)
        recent = text[max(len(text) - longest + 1, 0) :]
    if count < len(token_ids):
        warn_once("slow-stops", "decoding takes too long: a request that a stop string ends may be reported as "
                  "aborted; further ones are not logged")  # fmt: skip
    return None


def _match(text: str, known: int, stops: Sequence[str]) -> tuple[str, int] | None:
    """The stop string that ends first, beyond the first ``known`` characters, and where it starts; ties by order."""
    starts = ((text.find(stop, max(known - len(stop) + 1, 0)), stop) for stop in stops)
    ends = [(start + len(stop), number, stop) for number, (start, stop) in enumerate(starts) if start >= 0]
    end, _, stop = min(ends, default=(0, 0, ""))
    return (stop, end - len(stop)) if ends else None
