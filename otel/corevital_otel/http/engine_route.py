"""The route to reports on the engine's own server, behind that server's key.

It is one of the application's routes, so that whatever the server puts around its routes is around this one too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from corevital.guard import guarded, swallow
from corevital_otel.http import answers
from corevital_otel.http.reports import PATH, Reports

Protect = Callable[[Any, ASGIApp], ASGIApp | None]
"""Given an application and one of ours: ours behind the application's key; None: it is not the engine's server."""

_MARK: Final = "_corevital_route"
_PLACE: Final = "the report's route"


class EngineRoute:
    """Adds the route to an application when it begins to serve.

    Args:
        protect: see :data:`Protect`.
        reports: what answers.
    """

    def __init__(self, protect: Protect, reports: Reports) -> None:
        self._protect = protect
        self._reports = reports

    @guarded(_PLACE)
    def add(self, application: Any) -> None:
        """Add it, once, if the application is the engine's server."""
        if _MARK in application.__dict__:
            return
        setattr(application, _MARK, True)
        protected = self._protect(application, self._answer)
        if protected is not None:
            application.router.routes.insert(0, Route(PATH, _Endpoint(protected), include_in_schema=False))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            answer = answers.error(405, "no such method here: use GET or HEAD", {"Allow": "GET, HEAD"})
        else:
            try:
                answer = await self._reports.answer(Request(scope, receive))
            except HTTPException as error:
                answer = answers.error(error.status_code, error.detail)
            except Exception:
                swallow(_PLACE)
                answer = answers.error(500, "an error inside corevital: its log has the first one of each place")
        await answer(scope, receive, send)


class _Endpoint:
    """An ASGI application as a route takes it: of a class, so that it is not called as a function of a request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
