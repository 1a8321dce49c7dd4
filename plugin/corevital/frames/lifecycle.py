"""What the frontend knows of a sequence, and who wants to hear it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from corevital.frames.stamp import Stamp

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
    prompt_hash: str | None = None
    engine: str = "vllm"
    engine_version: str = ""
    runner: str = "unknown"


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
    """

    reason: str
    token_ids: Sequence[int]
    end_ns: int
    cached_tokens: int | None = None
    first_chunk_s: float | None = None
    text: str | None = None


class Observer(Protocol):
    """The listener's side. Calls return at once and come from the frontend's main thread, but for :meth:`drain`."""

    def admit(self, request: Admitted) -> Stamp | None:
        """A sequence comes in. Returns its stamp, or None if it shall not be measured."""

    def finish(self, key: int, outcome: Finished) -> None:
        """A sequence that was stamped with ``key`` has ended."""

    def drain(self, timeout_s: float) -> bool:
        """Wait until every sequence that has ended is reported; at most so long. False if some are not.

        May be called from any thread. The engine must still run: what is waited for comes from there.
        """
