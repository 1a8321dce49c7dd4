"""The caller's trace context, for requests that come in over HTTP.

A request's span is made where the engine's frontend admits it, inside the request's own task. What is needed there is
the caller's ``traceparent``, so a layer around the whole application makes it the current OpenTelemetry context.
Where an HTTP instrumentation runs further inside, its server span becomes current instead, and our span's parent.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from opentelemetry import context, propagate, trace

Scope = MutableMapping[str, Any]
App = Callable[[Any, Scope, Any, Any], Awaitable[None]]

_MARK: Final = "_corevital"
_SEEN: Final = "corevital.trace_context"
"""Key in a request's scope: an application mounted inside another must not take the inner span's place."""


def current_parent() -> context.Context | None:
    """The current context if it holds a valid span, else None."""
    current = context.get_current()
    return current if trace.get_current_span(current).get_span_context().is_valid else None


def follow_requests() -> None:
    """Make the caller's context current around every request to a Starlette application. Idempotent.

    Through ``Starlette.__call__``, the ASGI entry itself: where vLLM builds its application has moved between versions,
    and this cannot move.
    """
    applications = sys.modules.get("starlette.applications")
    if applications is None:  # offline: there is no server
        return
    call = applications.Starlette.__call__
    if not hasattr(call, _MARK):
        applications.Starlette.__call__ = _with_context(call)


def _with_context(call: App) -> App:
    @functools.wraps(call)
    async def with_context(self: Any, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or _SEEN in scope:
            await call(self, scope, receive, send)
            return
        scope[_SEEN] = True
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        token = context.attach(propagate.extract(headers))
        try:
            await call(self, scope, receive, send)
        finally:
            context.detach(token)

    setattr(with_context, _MARK, True)
    return with_context
