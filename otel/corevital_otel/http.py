"""Requests that come in over HTTP: the caller's trace context, and a server span around what the engine does.

A request's span is made where the engine's frontend admits it, inside the request's own task. Its parent is whatever
span is current there: the HTTP server span of :mod:`corevital_otel.http_spans`, or, without that, the caller's.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from opentelemetry import context, propagate

from corevital.guard import guarded

Scope = MutableMapping[str, Any]
App = Callable[[Any, Scope, Any, Any], Awaitable[None]]

_MARK: Final = "_corevital"
_SEEN: Final = "corevital.trace_context"
"""Key in a request's scope: an application mounted inside another must not take the inner span's place."""


def follow_requests(instrument: Callable[[Any], bool] | None = None) -> None:
    """Make the caller's context current around every request to a Starlette application.

    Through ``Starlette.__call__``, the ASGI entry itself: where vLLM builds its application has moved between versions,
    and this cannot move. What was asked for last applies.

    Args:
        instrument: puts a server span around the requests of an application it is given, which has not served any yet;
            says whether it did. The span then takes up the caller's context itself.
    """
    applications = sys.modules.get("starlette.applications")
    if applications is None:  # offline: there is no server
        return
    call = getattr(applications.Starlette.__call__, _MARK, applications.Starlette.__call__)
    applications.Starlette.__call__ = _with_context(call, guarded("the HTTP instrumentation")(instrument or _no_span))


def _no_span(application: Any) -> bool:
    return False


def _with_context(call: App, instrument: Callable[[Any], bool | None]) -> App:
    @functools.wraps(call)
    async def with_context(self: Any, scope: Scope, receive: Any, send: Any) -> None:
        if _SEEN in scope or scope["type"] not in ("http", "lifespan"):
            await call(self, scope, receive, send)
            return
        spanned = instrument(self)
        if scope["type"] != "http":
            await call(self, scope, receive, send)
            return
        scope[_SEEN] = True
        if spanned:
            await call(self, scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        token = context.attach(propagate.extract(headers))
        try:
            await call(self, scope, receive, send)
        finally:
            context.detach(token)

    setattr(with_context, _MARK, call)
    return with_context
