"""Requests that come in over HTTP: the caller's trace context, and a server span around what the engine does.

A request's span is made where the engine's frontend admits it, inside the request's own task. Its parent is the span
that is current there: the HTTP server span of :mod:`corevital_otel.spans.http_server`, or, without one, the caller's.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context

from corevital.guard import guarded
from corevital.text import MAX_SHOWN, printable
from corevital_otel import sampling
from corevital_otel.verdicts.answer import Answer, Send
from corevital_otel.verdicts.collector import CURRENT

Scope = MutableMapping[str, Any]
App = Callable[[Any, Scope, Any, Any], Awaitable[None]]

_MARK: Final = "_corevital"
_ECHOING: Final = (
    "opentelemetry.baggage.propagation", "opentelemetry.trace.propagation.tracecontext", "opentelemetry.trace.span",
)  # fmt: skip
"""Loggers of OpenTelemetry that repeat a caller's header where they cannot read it."""
_SEEN: Final = "corevital.trace_context"
"""Key in a request's scope: an application mounted inside another must not take the inner span's place."""


class _Printable(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage(), MAX_SHOWN), None
        return True


_PRINTABLE: Final = _Printable()


def follow_requests(
    instrument: Callable[[Any], bool] | None = None, answer: Callable[[Send], Answer] | None = None
) -> None:
    """Note the caller of every request to a Starlette application, for the span of what the engine does.

    Through ``Starlette.__call__``, the ASGI entry itself: where an engine builds its application may move between
    versions, and this cannot. The last call applies.

    Args:
        instrument: puts a server span around the requests of an application it is given, which has not served any yet;
            says whether it did. Each span then takes up the caller's context itself.
        answer: takes the messages of a request's answer, which may have the verdict on it; None: it cannot.
    """
    applications = sys.modules.get("starlette.applications")
    if applications is None:  # offline: there is no server
        return
    for name in _ECHOING:
        logging.getLogger(name).addFilter(_PRINTABLE)  # adding it twice does nothing
    call = getattr(applications.Starlette.__call__, _MARK, applications.Starlette.__call__)
    applications.Starlette.__call__ = _with_context(
        call, guarded("the HTTP instrumentation")(instrument or _no_span), answer
    )


def _no_span(application: Any) -> bool:
    return False


def _with_context(call: App, instrument: Callable[[Any], bool | None], answer: Callable[[Send], Answer] | None) -> App:
    @functools.wraps(call)
    async def with_context(self: Any, scope: Scope, receive: Any, send: Any) -> None:
        if _SEEN in scope or scope["type"] not in ("http", "websocket", "lifespan"):
            await call(self, scope, receive, send)
            return
        spanned = instrument(self)
        if scope["type"] == "lifespan":
            await call(self, scope, receive, send)
            return
        scope[_SEEN] = True
        caller = _caller(scope)
        noted = sampling.CALLER.set(caller)
        # where a server span is to come, a current span would be taken for its local parent
        alone = not spanned and not _is_instrumented(self)
        token = context.attach(caller) if caller is not None and alone else None
        answering = answer(send) if answer is not None and scope.get("method") == "POST" else None
        collecting = CURRENT.set(None if answering is None else answering.collector)
        try:
            await call(self, scope, receive, send if answering is None else answering.send)
        finally:
            CURRENT.reset(collecting)
            if token is not None:
                context.detach(token)
            sampling.CALLER.reset(noted)

    setattr(with_context, _MARK, call)
    return with_context


def _caller(scope: Scope) -> Context | None:
    """The current context with a request's caller in it; None where something around the application has made a span.

    It is noted for each request, for :meth:`corevital_otel.sampling.Sampler.admit`: that an application has server
    spans does not mean that this request gets one. Its path may be excluded, or instrumentation suppressed.
    """
    if trace.get_current_span().get_span_context().is_valid:
        return None
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    # what OpenTelemetry cannot read it logs, as it came
    readable = {name: value for name, value in headers.items() if value.isprintable()}
    return guarded("the caller's headers")(propagate.extract)(readable, context.get_current())


def _is_instrumented(application: Any) -> bool:
    """Whether the user's own instrumentation makes spans of the application's requests."""
    layers = getattr(application, "user_middleware", ())
    return getattr(application, "_is_instrumented_by_opentelemetry", False) or any(
        getattr(getattr(layer, "cls", None), "__name__", "") == "OpenTelemetryMiddleware" for layer in layers
    )
