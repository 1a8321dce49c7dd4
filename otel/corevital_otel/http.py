"""The caller's trace context, for requests that come in over HTTP.

A request's span is made where the engine's frontend admits it, inside the request's own task. What is needed there is
the caller's ``traceparent``, so an ASGI layer around the whole application makes it the current OpenTelemetry context.
Where an HTTP instrumentation runs further inside, its server span becomes current instead, and our span's parent.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from opentelemetry import context, propagate, trace

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

_MARK = "_corevital"


class TraceContext:
    """ASGI middleware: extracts the context from the request's headers (``OTEL_PROPAGATORS``, W3C by default)."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Handle one ASGI scope; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        token = context.attach(propagate.extract(headers))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


def current_parent() -> context.Context | None:
    """The current context if it holds a valid span, else None."""
    current = context.get_current()
    return current if trace.get_current_span(current).get_span_context().is_valid else None


def follow_requests() -> None:
    """Put :class:`TraceContext` around every Starlette application that is built from now on. Idempotent.

    Through ``build_middleware_stack``, which Starlette calls once, before the first request: where vLLM builds its
    application has moved between versions, and this has not.
    """
    applications = sys.modules.get("starlette.applications")
    if applications is None:  # offline: there is no server
        return
    build = applications.Starlette.build_middleware_stack
    if hasattr(build, _MARK):
        return

    def with_context(self: Any) -> App:
        return TraceContext(build(self))

    setattr(with_context, _MARK, True)
    applications.Starlette.build_middleware_stack = with_context
