"""How our calls get around vLLM's: on one instance where that holds nothing in a cycle, else on its class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final, Protocol

from corevital.log import warn_once

_FOLLOWED: Final = "_corevital_frontend"
"""Where an engine and its core's client keep the frontend that follows them."""


_trace_headers: ContextVar[object] = ContextVar("corevital_trace_headers", default=None)


class Follower(Protocol):
    """Called with what happens to an engine. Its methods never raise."""

    def handed_over(self, engine_id: str, error: BaseException) -> None:
        """A request could not be handed to the engine's core, or its task was given up meanwhile."""

    def end_all(self, reason: str) -> None:
        """The engine is gone."""

    def drain(self) -> None:
        """The engine is about to be shut down."""


def after(processor: Any, name: str, ours: Callable[..., Any]) -> None:
    """Call ``ours(result, *args)`` after the method ``name`` of this one instance."""
    original = getattr(processor, name, None)
    if original is None:
        warn_once(f"frontend:{name}", "vLLM has no OutputProcessor.%s: what it reports is missing in spans", name)
        return

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        ours(result, *args, **kwargs)
        return result

    setattr(processor, name, call)


def around_outputs(processor: Any, before: Callable[[Iterable[Any]], Any], after: Callable[[], Any]) -> None:
    """Call ``before(outputs)`` and ``after()`` around each step's ``process_outputs`` of this one instance."""
    original = getattr(processor, "process_outputs", None)
    if original is None:
        warn_once("frontend:process_outputs", "vLLM has no OutputProcessor.process_outputs: there is no time to the "
                  "first token under --disable-log-stats")  # fmt: skip
        return

    @functools.wraps(original)
    def call(engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        before(engine_core_outputs)
        try:
            return original(engine_core_outputs, *args, **kwargs)
        finally:
            after()

    processor.process_outputs = call


def follow_engine(engine: Any, frontend: Follower) -> None:
    """Have the engine, and its core's client, call the frontend.

    Through their classes: a call of ours on the instance would hold it in a cycle, and an engine that nobody holds any
    more would not end until the garbage collector comes by.
    """
    core = getattr(engine, "engine_core", None)
    hand_overs = [name for name in ("add_request_async", "add_request") if callable(getattr(core, name, None))]
    if not hand_overs:
        warn_once("frontend:core", "vLLM has no EngineCoreClient.add_request: requests that do not reach the engine "
                  "count as running until the server ends")  # fmt: skip
    for name in hand_overs:
        on_class(type(core), name, _handing_over)
    on_class(type(engine), "add_request", _carrying_headers)
    on_class(type(engine), "shutdown", _draining)
    on_class(type(engine), "step", _stepping)
    for followed in (engine, core):
        if followed is not None:
            followed.__dict__[_FOLLOWED] = frontend


def on_class(owner: type, name: str, wrap: Callable[[Any], Any]) -> None:
    """Replace a method of a class by ``wrap(method)``, once."""
    original = getattr(owner, name, None)
    if callable(original) and not hasattr(original, _FOLLOWED):
        call = functools.wraps(original)(wrap(original))
        setattr(call, _FOLLOWED, True)
        setattr(owner, name, call)


def follower(instance: Any) -> Follower | None:
    """Who follows an engine or its core's client, None for one that nobody follows."""
    return getattr(instance, "__dict__", {}).get(_FOLLOWED)


def _handing_over(original: Any) -> Any:
    def failed(core: Any, request: Any, error: BaseException) -> None:
        frontend = follower(core)
        if frontend is not None:
            frontend.handed_over(getattr(request, "request_id", ""), error)

    async def add_async(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await original(self, request, *args, **kwargs)
        except BaseException as error:
            failed(self, request, error)
            raise

    def add(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, request, *args, **kwargs)
        except BaseException as error:
            failed(self, request, error)
            raise

    return add_async if inspect.iscoroutinefunction(original) else add


def trace_headers() -> object:
    """The trace headers that the request being added came with. vLLM itself drops them where its own tracing is off."""
    return _trace_headers.get()


def _carrying_headers(original: Any) -> Any:
    async def add_async(*args: Any, **kwargs: Any) -> Any:
        token = _trace_headers.set(kwargs.get("trace_headers"))
        try:
            return await original(*args, **kwargs)
        finally:
            _trace_headers.reset(token)

    def add(*args: Any, **kwargs: Any) -> Any:
        token = _trace_headers.set(kwargs.get("trace_headers"))
        try:
            return original(*args, **kwargs)
        finally:
            _trace_headers.reset(token)

    return add_async if inspect.iscoroutinefunction(original) else add


def _draining(original: Any) -> Any:
    def shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        frontend = follower(self)
        if frontend is not None:
            frontend.drain()
        return original(self, *args, **kwargs)

    return shutdown


def _stepping(original: Any) -> Any:
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except Exception as error:
            frontend = follower(self)
            if frontend is not None and type(error).__name__ == "EngineDeadError":
                frontend.end_all("error")
            raise

    return step
