"""What the frontend knows of a sequence, and who wants to hear it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, TypeVar

from corevital.frames.stamp import Stamp
from corevital.text import MAX_BYTES, cut

_MAX_TAGS: Final = 16

FinishReason = Literal["stop", "length", "abort", "error", "repetition"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A sequence on its way into the engine.

    Attributes:
        request_id: the id the client sees (``chatcmpl-…``).
        engine_id: the engine's own id of this sequence.
        sequence: its number among the request's ``n``.
        operation: the GenAI operation name, ``chat`` or ``text_completion``.
        model: the name it is served under.
        arrival_ns: wall clock, nanoseconds since the epoch.
        prompt_tokens: tokens in the prompt.
        capture: the request's own capture mode, None for the server's.
        sample: the request's own wish to be measured or not, None for the server's rate.
        tags: the request's ``corevital_tags``.
        choices: sequences that the request asked for.
        stream: whether the answer is streamed; None where that cannot be told.
        frequency_penalty, presence_penalty: as asked for; 0 is none.
        output_type: ``text`` or ``json``.
        prompt_text: the prompt, only where content may leave the process.
        prompt_characters: of the prompt, where ``prompt_text`` is only its beginning.
        prompt_hash: keyed hash of the prompt, only where a key is set.
    """

    request_id: str
    engine_id: str
    sequence: int
    operation: str
    model: str
    arrival_ns: int
    prompt_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None
    capture: str | None = None
    sample: bool | None = None
    tags: tuple[str, ...] = ()
    choices: int = 1
    stream: bool | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    output_type: str = "text"
    prompt_text: str | None = None
    prompt_characters: int | None = None
    prompt_hash: str | None = None
    engine: str = "vllm"
    engine_version: str = ""
    runner: str = "unknown"

    def bounded(self, characters: int) -> Admitted:
        """The same, fit to be kept: each string valid UTF-8 of at most 256 bytes, and as many characters of content."""
        changed = _changed(self, _ADMITTED_STRINGS)
        if len(self.tags) > _MAX_TAGS or not all(map(_fits, self.tags)):
            changed["tags"] = tuple(cut(str(tag)) for tag in self.tags[:_MAX_TAGS])
        if self.prompt_text is not None and len(self.prompt_text) > characters:
            changed |= {"prompt_text": self.prompt_text[:characters], "prompt_characters": len(self.prompt_text)}
        return replace(self, **changed) if changed else self


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A sequence's end, however it came.

    Attributes:
        reason: ``stop``, ``length``, ``abort``, ``error``, or what else the engine says.
        token_ids: all tokens returned to the client, in order.
        end_ns: wall clock, nanoseconds since the epoch.
        cached_tokens: prompt tokens read from the engine's cache.
        first_chunk_s: seconds from arrival to the first token, where the engine measured it.
        text: the output, only where content may leave the process.
        text_characters: of the output, where ``text`` is only its beginning.
    """

    reason: str
    token_ids: Sequence[int]
    end_ns: int
    cached_tokens: int | None = None
    first_chunk_s: float | None = None
    text: str | None = None
    text_characters: int | None = None

    def bounded(self, characters: int) -> Finished:
        """See :meth:`Admitted.bounded`."""
        changed = _changed(self, ("reason",))
        if self.text is not None and len(self.text) > characters:
            changed |= {"text": self.text[:characters], "text_characters": len(self.text)}
        return replace(self, **changed) if changed else self


_Of = TypeVar("_Of", Admitted, Finished)

_ADMITTED_STRINGS: Final = (
    "request_id", "engine_id", "operation", "model", "capture", "output_type", "prompt_hash", "engine",
    "engine_version", "runner",
)  # fmt: skip


def _changed(whole: _Of, strings: tuple[str, ...]) -> dict[str, Any]:
    """Those of the strings that cannot be kept as they are, cut."""
    found = ((name, getattr(whole, name)) for name in strings)
    return {name: cut(str(text)) for name, text in found if text is not None and not _fits(text)}


def _fits(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and len(text) <= MAX_BYTES


class Observer(Protocol):
    """The listener's side. ``admit`` and ``finish`` return at once and come from the frontend's main thread."""

    def admit(self, request: Admitted) -> Stamp | None:
        """A sequence comes in. Returns its stamp, or None if it shall not be measured."""

    def finish(self, key: int, outcome: Finished) -> None:
        """A sequence that was stamped with ``key`` has ended. Only the first call for a key counts."""

    def drain(self, timeout_s: float) -> bool:
        """Wait until every sequence that has ended is reported, at most this long. From any thread.

        Returns:
            Whether all are.
        """
