"""Which client request a generation belongs to, as vLLM's serving layer knows it.

One client call may reach the engine as many requests: several prompts, a batch of conversations, turns with tools
in between, items to score, steps of a beam search. The engine makes its own ids. The client's id is
known where vLLM serves the call: each of its serving methods is entered once a call (:data:`ENTRIES`), and writes the
client's id into its ``RequestResponseMetadata``. A context variable carries both to the engine's frontend. Wrong
``corevital_*`` arguments are refused there too: vLLM checks them only after a streamed answer's status is sent.

Without an entry (the engine driven directly, as a library) the id is the one given to the engine, number 0, operation
``text_completion``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextvars import ContextVar, Token
from typing import Any, Final, NamedTuple

from corevital.engines.vllm import request_args
from corevital.engines.vllm.hooks import follower
from corevital.engines.vllm.names import client_id, warms_up
from corevital.engines.vllm.tool_calls import Tools, tools_of
from corevital.guard import guarded
from corevital.log import warn_once

_MARK: Final = "_corevital"
_ROOT: Final = "vllm.entrypoints."
DEFAULT_OPERATION: Final = "text_completion"


class Entry(NamedTuple):
    """A method of vLLM that serves a client's calls.

    Attributes:
        module: below ``vllm.entrypoints``.
        name: class and method.
        operation: the GenAI operation name.
        separator: what vLLM puts between the client's id and a part's number; used where it gives no metadata.
        scores: each part is one token, of which the client gets only probabilities. The first part is measured, so that
            an answer has one span; the others are counted.
    """

    module: str
    name: str
    operation: str
    separator: str = ""
    scores: bool = False


ENTRIES: Final = (
    Entry("openai.chat_completion.serving", "OpenAIServingChat.create_chat_completion", "chat"),
    Entry("openai.chat_completion.batch_serving", "OpenAIServingChatBatch.create_batch_chat_completion", "chat", "_"),
    Entry("openai.completion.serving", "OpenAIServingCompletion.create_completion", "text_completion", "-"),
    Entry("openai.responses.serving", "OpenAIServingResponses.create_responses", "chat", "_"),
    Entry("anthropic.serving", "AnthropicServingMessages.create_messages", "chat"),
    Entry("cohere.serving", "CohereServingChatV2.create_chat_v2", "chat"),
    Entry("scale_out.token_in_token_out.serving", "ServingTokens.serve_tokens", "text_completion"),
    Entry("speech_to_text.transcription.serving", "OpenAIServingTranscription.create_transcription", "text_completion"),
    Entry("speech_to_text.translation.serving", "OpenAIServingTranslation.create_translation", "text_completion"),
    Entry("generate.generative_scoring.serving", "ServingGenerativeScoring.create_generative_scoring",
          "text_completion", "-", scores=True),
    Entry("generate.structured_decisions.serving", "ServingStructuredDecisions.create_decision",
          "text_completion", "-", scores=True),
    Entry("llm", "LLM.chat", "chat"),
    Entry("llm", "LLM.enqueue_chat", "chat"),
)  # fmt: skip

_STEPS: Final = (
    ("generate.beam_search.online", "BeamSearchOnlineMixin.beam_search", "beam_search"),
    ("generate.beam_search.offline", "BeamSearchOfflineMixin.beam_search", "beam_search"),
    ("speech_to_text.base.serving", "SpeechToTextBaseServing._detect_language", "language_detection"),
)
"""Methods whose requests to the engine are one token each that no client gets, and the kind of these."""
_METADATA: Final = (
    ("generate.base.protocol", "RequestResponseMetadata"),
    ("openai.engine.protocol", "RequestResponseMetadata"),  # before 0.29
)
_SERVERS: Final = ("cli.serve", "cli.run_batch", "openai.api_server", "openai.run_batch", "launchers.api_server.entry",
                   "launchers.run_batch")  # fmt: skip
"""Modules of a process that serves clients. It will load the serving methods anyway, but after the engine."""
_OFFLINE: Final = ("llm", "generate.beam_search.offline")
"""Modules that a server has no use for."""
_NEEDED: Final = ("OpenAIServingChat.create_chat_completion", "OpenAIServingCompletion.create_completion")


class Call:
    """One call of a client.

    Args:
        entry: the method that serves it.
        tools: what its answer may call.
    """

    __slots__ = ("_numbers", "entry", "request_id", "tools")

    def __init__(self, entry: Entry, tools: Tools | None = None) -> None:
        self.entry = entry
        self.tools = tools
        self.request_id: str | None = None
        """The client's id, as soon as vLLM has made it."""
        self._numbers: dict[str, int] = {}

    def place(self, given: str) -> tuple[str, int]:
        """The client's id, and which part of the call the request is that the engine was given as ``given``."""
        if self.request_id is None:
            head, separator, tail = given.rpartition(self.entry.separator or "\0")
            return (head, int(tail)) if separator and _is_number(tail) else (given, 0)
        if given == self.request_id:
            return given, 0
        rest = given.removeprefix(self.request_id)
        if rest != given and rest[0] in "-_" and _is_number(rest[1:]):
            return self.request_id, int(rest[1:])
        return self.request_id, self._numbers.setdefault(given, len(self._numbers))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


_call: ContextVar[Call | None] = ContextVar("corevital_call", default=None)
_inner: ContextVar[str | None] = ContextVar("corevital_inner_step", default=None)
_seen = 0
"""Modules that were loaded when we last looked for serving methods."""


def current() -> Call | None:
    """The client's call that is being served here, None where the engine is driven directly."""
    call = _call.get()
    if call is None and len(sys.modules) != _seen:  # a library that loads vLLM's serving after its engine
        follow()
    return call


def internal_kind(request: Any) -> str | None:
    """The kind of a request to the engine that serves no client directly; None for a client's own.

    Args:
        request: vLLM's ``EngineCoreRequest``, where it is made.
    """
    kind = _inner.get()
    call = current()
    if kind is not None:
        return kind
    if call is None:
        return "warm_up" if warms_up(client_id(request)) else None
    return "scoring" if call.entry.scores and call.place(client_id(request))[1] > 0 else None


@guarded("the start of the frontend")
def follow() -> None:
    """Put our calls around vLLM's serving methods, on their classes. Idempotent."""
    global _seen  # noqa: PLW0603 - as process-wide as what it counts
    serves = any(_ROOT + name in sys.modules for name in _SERVERS)
    for entry in ENTRIES:
        _around(entry.module, entry.name, functools.partial(_entered, entry), serves)
    for module, name, kind in _STEPS:
        _around(module, name, functools.partial(_inner_steps, kind), serves)
    for module, name in _METADATA:
        _around(module, f"{name}.__init__", _noting_id, serves)
    _seen = len(sys.modules)


def _around(module: str, name: str, wrap: Callable[[Any], Any], load: bool) -> None:
    found = sys.modules.get(_ROOT + module)
    if found is None and load and module not in _OFFLINE:
        try:
            found = importlib.import_module(_ROOT + module)
        except Exception:  # not in this version, or a part of vLLM whose dependencies are not installed
            found = None
    class_name, _, method = name.partition(".")
    owner = getattr(found, class_name, None)
    original = getattr(owner, method, None)
    if owner is None or original is None:
        if load and name in _NEEDED:
            warn_once(f"calls:{name}", "vLLM has no %s: request ids and operations are those of the engine", name)
        return
    if not hasattr(original, _MARK):
        call = wrap(original)
        setattr(call, _MARK, True)
        setattr(owner, method, call)


def _entered(entry: Entry, original: Any) -> Any:
    if not inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            token = _call.set(_call.get() or Call(entry))
            try:
                return original(*args, **kwargs)
            finally:
                _call.reset(token)

        return call

    @functools.wraps(original)
    async def serve(*args: Any, **kwargs: Any) -> Any:
        if _call.get() is not None:  # one way of serving built on another
            return await original(*args, **kwargs)
        refusal = _refused(args, kwargs)
        if refusal is not None:
            return refusal
        here = Call(entry, _tools(args, kwargs))
        token = _call.set(here)
        try:
            answer = await original(*args, **kwargs)
        finally:
            _call.reset(token)
        # a streamed answer goes to the engine when its first piece is asked for
        return _within(answer, _call, here) if inspect.isasyncgen(answer) else answer

    return serve


@guarded("a request's arguments")
def _refused(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The error for a request with a wrong argument of ours (HTTP 400), before a stream begins; None if it is well."""
    serving, *given = args
    if follower(getattr(serving, "engine_client", None)) is None or not hasattr(serving, "create_error_response"):
        return None
    for request in (*given, *kwargs.values()):
        asked = getattr(request, "vllm_xargs", None)
        if isinstance(asked, Mapping):
            try:
                request_args.read(asked)
            except ValueError as error:
                return serving.create_error_response(str(error))
    return None


@guarded("a request's tools")
def _tools(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tools | None:
    serving, *given = args
    return next((tools for request in (*given, *kwargs.values()) if (tools := tools_of(serving, request))), None)


def _inner_steps(kind: str, original: Any) -> Any:
    """What the method asks of the engine is not a client's request."""
    say = _say_unmeasured if kind == "beam_search" else lambda: None
    if inspect.isasyncgenfunction(original):

        @functools.wraps(original)
        def search(*args: Any, **kwargs: Any) -> Any:
            say()
            return _within(original(*args, **kwargs), _inner, kind)

        return search

    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def ask(*args: Any, **kwargs: Any) -> Any:
            say()
            token = _inner.set(kind)
            try:
                return await original(*args, **kwargs)
            finally:
                _reset(_inner, token)

        return ask

    @functools.wraps(original)
    def search_now(*args: Any, **kwargs: Any) -> Any:
        say()
        token = _inner.set(kind)
        try:
            return original(*args, **kwargs)
        finally:
            _inner.reset(token)

    return search_now


def _say_unmeasured() -> None:
    warn_once("beams", "beam search is not measured: vLLM serves each step of each beam as a request of one token")


def _noting_id(original: Any) -> Any:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        call = _call.get()
        if call is not None:
            request_id = getattr(self, "request_id", None)
            call.request_id = request_id if isinstance(request_id, str) else call.request_id

    return init


async def _within(generator: AsyncGenerator[Any, Any], variable: ContextVar[Any], value: object) -> Any:
    """The generator's items, each made with ``variable`` set to ``value``, which its consumer does not see."""
    try:
        while True:
            token = variable.set(value)
            try:
                item = await anext(generator)
            except StopAsyncIteration:
                return
            finally:
                _reset(variable, token)
            yield item
    finally:
        await generator.aclose()


def _reset(variable: ContextVar[Any], token: Token[Any]) -> None:
    with contextlib.suppress(ValueError):  # closed from another context, which never saw the value
        variable.reset(token)
