"""What the frontend knows of a sequence, and the observer that is called with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

from corevital.frames.stamp import Stamp
from corevital.text import MAX_BYTES, cut

_MAX_TEXTS: Final = 16
"""Tags, and stop strings, that are kept."""

STOP_STRING: Final = "stop_string"
"""In :attr:`CoreFacts.stop_reason`, replaces a stop string, which is the client's text, if content is not captured."""

_MAX_STATE: Final = 512
"""Characters of a ``tracestate`` that are kept: the least that W3C requires vendors to propagate."""

_MAX_STOPS: Final = 64
_MAX_STOP: Final = 1024
"""Stop strings that are looked for, and the characters of each: one that is longer is left out, never cut."""

SEGMENT_KINDS: Final = ("reasoning", "tool_call", "mark")
"""Parts of an output that are not its answer: see :class:`Segment`."""
MAX_SEGMENTS: Final = 256
"""Parts of an output that are kept."""

NO_VERDICT: Final = "corevital_return is ignored (%s): ask GET /corevital/v1/requests/ID for the report"
"""The one warning, under the key ``verdict``, where an answer cannot have the verdict on it."""

FinishReason = Literal["stop", "length", "abort", "error", "repetition"]


class Segment(NamedTuple):
    """A part of an output that is not its answer.

    Attributes:
        kind: ``reasoning``, ``tool_call``, or ``mark``: a token that only begins or ends a part.
        start, end: output index of its first token, and one beyond its last.
    """

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What an API server has decided of a sequence that it hands to a hub process.

    Attributes:
        drawn: it is kept whatever becomes of it.
        exported: its span is, if it is kept.
        is_remote: the span that ``traceparent`` names is another process's, not the API server's own.
    """

    drawn: bool
    exported: bool
    is_remote: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A sequence on its way into the engine.

    Attributes:
        request_id: the id the client sees (``chatcmpl-…``); empty where the engine does not know it.
        engine_id: the engine's own id of this sequence.
        sequence: its number among the request's ``n``.
        operation: the GenAI operation name, ``chat`` or ``text_completion``.
        model: the name it is served under.
        arrival_ns: wall clock, nanoseconds since the epoch.
        prompt_tokens: tokens in the prompt.
        capture: the request's own capture mode, None for the server's.
        sample: whether the request asks to be kept (True) or not measured (False), None for the server's rate.
        tags: the request's ``corevital_tags``.
        verdict: its answer is to have the verdict on it (``corevital_return``).
        choices: sequences that the request asked for.
        stream: whether the answer is streamed; None where that is not known.
        frequency_penalty, presence_penalty: as asked for; 0 is none.
        output_type: ``text`` or ``json``.
        prompt_text: the prompt, only where content may leave the process.
        prompt_characters: of the prompt, where ``prompt_text`` is only its beginning.
        prompt_hash: keyed hash of the prompt, only where a key is set.
        stop_sequences: the request's stop strings, only where content may leave the process.
        role: ``prefill`` for the first leg of disaggregated serving; None for a client's own request.
        prefill_id: of both legs of disaggregated serving, the engine's id of the first.
        transfer_id: of both legs, the id that the router gave their transfer of the KV cache.
        traceparent, tracestate: W3C's headers of the caller's span, for where no OpenTelemetry context is current.
        draw: what was decided before it was sent to a hub process; None: the hub decides.
        batch: of an engine that serves several requests in one span, the W3C ``traceparent`` of that span, to which
            the sequence's is linked.
        segmented: its end may name :attr:`Finished.segments`.
        engine, runner, stage: see :class:`~corevital.frames.layout.Source`; of a sequence with frames, theirs count.
        engine_version: the engine's version, empty where unknown.
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
    verdict: bool = False
    choices: int = 1
    stream: bool | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    output_type: str = "text"
    prompt_text: str | None = None
    prompt_characters: int | None = None
    prompt_hash: str | None = None
    stop_sequences: tuple[str, ...] = ()
    role: str | None = None
    prefill_id: str | None = None
    transfer_id: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    draw: Draw | None = None
    batch: str | None = None
    segmented: bool = False
    engine: str = "unknown"
    engine_version: str = ""
    runner: str = "unknown"
    stage: str = "unknown"

    @property
    def known_id(self) -> str:
        """The id the client sees, or the engine's where that is not known."""
        return self.request_id or self.engine_id

    def bounded(self, characters: int) -> Admitted:
        """The same, fit to be kept: each string valid UTF-8 of at most 256 bytes, and as many characters of content."""
        changed = _changed(self, _ADMITTED_STRINGS)
        for name in ("tags", "stop_sequences"):
            texts = getattr(self, name)
            if len(texts) > _MAX_TEXTS or not all(map(_fits, texts)):
                changed[name] = tuple(cut(str(text)) for text in texts[:_MAX_TEXTS])
        if self.tracestate is not None and (state := _whole_members(self.tracestate)) != self.tracestate:
            changed["tracestate"] = state
        if self.prompt_text is not None and len(self.prompt_text) > characters:
            changed |= {"prompt_text": self.prompt_text[:characters], "prompt_characters": len(self.prompt_text)}
        return replace(self, **changed) if changed else self


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """A request's stop strings, and how the frontend applies them to the decoded text.

    Attributes:
        stop: the strings, any of which ends the output.
        include_stop_str: the client gets the stop string too.
        min_tokens: the text of this many first tokens is not searched.
        skip_special_tokens: special tokens are left out of the text.
        prompt_end: the last tokens of the prompt, which the output's text continues; a few are enough.
    """

    stop: tuple[str, ...]
    include_stop_str: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    prompt_end: tuple[int, ...] = ()

    def bounded(self) -> StopRule:
        """The same, fit to be kept. A string that is too long is left out: its beginning would be another one."""
        stop = [text for text in self.stop if isinstance(text, str) and 0 < len(text) <= _MAX_STOP][:_MAX_STOPS]
        if len(stop) == len(self.stop) and len(self.prompt_end) <= _MAX_TEXTS:
            return self
        return replace(self, stop=tuple(stop), prompt_end=self.prompt_end[-_MAX_TEXTS:])


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreFacts:
    """What the engine core knows of an ended sequence; None where it does not know.

    Attributes:
        queue_s: seconds from its arrival in the core to its first scheduling.
        prefill_s: seconds from then to its first token.
        decode_s: seconds from then to its end.
        preemptions: how often it was preempted and recomputed.
        data_parallel_rank: the rank that served it; None without data parallelism.
        stop_reason: the stop token's id as text, or the stop string, that ended it; :data:`STOP_STRING` in place of a
            string where content may not leave the process. Or one that :func:`corevital.supported.stopped_by` knows.
        cached_tokens: prompt tokens that were not computed.
        cached_source: their origin: ``local`` (the engine's own cache), ``external`` (a KV connector) or
            ``mixed``.
        accepted_draft_tokens: draft tokens that were accepted, under speculative decoding.
    """

    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    preemptions: int | None = None
    data_parallel_rank: int | None = None
    stop_reason: str | None = None
    cached_tokens: int | None = None
    cached_source: str | None = None
    accepted_draft_tokens: int | None = None

    def bounded(self) -> CoreFacts:
        """The same, fit to be kept: each string valid UTF-8 of at most 256 bytes."""
        changed = _changed(self, ("stop_reason", "cached_source"))
        return replace(self, **changed) if changed else self

    def over(self, other: CoreFacts) -> CoreFacts:
        """These facts, completed with the other's where None."""
        return CoreFacts(**{
            field.name: getattr(other, field.name) if (own := getattr(self, field.name)) is None else own
            for field in fields(self)
        })  # fmt: skip


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
        reasoning_tokens: of the output, those that a reasoning parser took out of the answer.
        segments: the parts of the output that are not its answer, in order; empty where it has none, or they are not
            known.
        core: what the engine core knows.
        stop_rule: for an abort that may be a match of a stop string, which the core does not see; None where the
            frontend reported the end.
        tokenizer: name or directory of the tokenizer of the tokens, and its revision, where it is not that of the
            hub's own engine.
    """

    reason: str
    token_ids: Sequence[int]
    end_ns: int
    cached_tokens: int | None = None
    first_chunk_s: float | None = None
    text: str | None = None
    text_characters: int | None = None
    reasoning_tokens: int | None = None
    segments: tuple[Segment, ...] = ()
    core: CoreFacts = CoreFacts()
    stop_rule: StopRule | None = None
    tokenizer: tuple[str, str | None] | None = None

    def bounded(self, characters: int) -> Finished:
        """See :meth:`Admitted.bounded`."""
        changed = _changed(self, ("reason",))
        if len(self.segments) > MAX_SEGMENTS:
            changed["segments"] = self.segments[:MAX_SEGMENTS]
        if self.stop_rule is not None and (rule := self.stop_rule.bounded()) is not self.stop_rule:
            changed["stop_rule"] = rule
        if (core := self.core.bounded()) is not self.core:
            changed["core"] = core
        if self.text is not None and len(self.text) > characters:
            changed |= {"text": self.text[:characters], "text_characters": len(self.text)}
        return replace(self, **changed) if changed else self


_Of = TypeVar("_Of", Admitted, CoreFacts, Finished)

_ADMITTED_STRINGS: Final = (
    "request_id", "engine_id", "operation", "model", "capture", "output_type", "prompt_hash", "role", "prefill_id",
    "transfer_id", "traceparent", "batch", "engine", "engine_version", "runner", "stage",
)  # fmt: skip


def _changed(whole: _Of, strings: tuple[str, ...]) -> dict[str, Any]:
    """The strings that are too long or not ASCII, cut."""
    found = ((name, getattr(whole, name)) for name in strings)
    return {name: cut(str(text)) for name, text in found if text is not None and not _fits(text)}


def _whole_members(state: str) -> str | None:
    """The first members of a ``tracestate``, as many as fit; None where it can be none."""
    if not isinstance(state, str) or not (state[: _MAX_STATE + 1].isascii() and state.isprintable()):
        return None
    return state if len(state) <= _MAX_STATE else state[: _MAX_STATE + 1].rpartition(",")[0] or None


def _fits(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and len(text) <= MAX_BYTES


INTERNAL_KINDS: Final = ("beam_search", "scoring", "language_detection", "warm_up")
"""Sequences that serve no client directly: see :meth:`Observer.internal`."""


class Observer(Protocol):
    """Called by the frontend. ``admit`` and ``finish`` return at once; the frontend's main thread calls them."""

    @property
    def left_out(self) -> Stamp:
        """The stamp of requests that must not be measured, so that the engine core leaves them out too."""

    def admit(self, request: Admitted) -> Stamp | None:
        """A sequence comes in. Returns its stamp, or None if it will not be measured."""

    def finish(self, key: int, outcome: Finished) -> None:
        """A sequence that was stamped with ``key`` has ended. Only the first call for a key counts."""

    def internal(self, kind: str) -> None:
        """A sequence that serves no client directly comes in: it is counted and not measured.

        Args:
            kind: one of :data:`INTERNAL_KINDS`.
        """

    def unobserved(self, sequences: int) -> None:
        """Count new sequences that are not measured."""

    def drain(self, timeout_s: float) -> bool:
        """Wait until every sequence that has ended is reported, at most this long. From any thread.

        Returns:
            Whether all are.
        """
