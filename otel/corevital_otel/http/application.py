"""What answers at each path of the hub's port. Nothing here waits in the event loop's thread."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from anyio import CapacityLimiter, to_thread
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from corevital.guard import swallow
from corevital_otel.http import answers
from corevital_otel.http.access import HEALTH, Access
from corevital_otel.http.health import Health
from corevital_otel.http.reports import PATH, Reports

_PLACE: Final = "the hub's HTTP port"
_READERS: Final = 4
"""Threads that read the metrics at a time."""


class Application:
    """The paths of the port.

    Args:
        token: that requests must carry; None: none is needed.
        state: the hub's state now; called in the event loop's thread, so it must not block.
        is_running: whether a request with this id runs, until its last row can be read from the store; likewise.
        db: the store's file; None: there is none.
        registry: of the metrics; by default the process's, or that of all processes where they share a folder.
    """

    def __init__(
        self,
        token: str | None,
        state: Callable[[], Health],
        is_running: Callable[[str], bool],
        db: Path | None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._state = state
        self._reports = Reports(is_running, db)
        self._registry = registry
        self._readers = CapacityLimiter(_READERS)
        self._paths = Starlette(
            routes=[
                Route("/metrics", self._guarded(self._metrics)),
                Route(HEALTH, self._guarded(self._health)),
                Route(PATH, self._guarded(self._reports.answer)),
            ],
            middleware=[Middleware(Access, token=token)],
            exception_handlers={HTTPException: _refused},
        )
        self._paths.router.redirect_slashes = False

    def close(self) -> None:
        """No request waits any longer."""
        self._reports.closing = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        try:
            await self._paths(scope, receive, send)
        except Exception:  # outside of what _guarded guards; the server answers 500
            swallow(_PLACE)

    @staticmethod
    def _guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def call(request: Request) -> Response:
            try:
                return await answer(request)
            except HTTPException:
                raise
            except Exception:
                swallow(_PLACE)
                return answers.error(500, "an error inside corevital: its log has the first one of each place")

        return call

    async def _metrics(self, request: Request) -> Response:
        names, accepted = request.query_params.getlist("name[]"), request.headers.get("accept", "")
        return await to_thread.run_sync(
            lambda: _exposition(self._registry, accepted, names), limiter=self._readers, abandon_on_cancel=True
        )

    async def _health(self, request: Request) -> Response:
        state = self._state()
        return answers.as_json(state.as_json(), 200 if state.status == "ok" else 503)


def _exposition(registry: CollectorRegistry | None, accepted: str, names: list[str]) -> Response:
    """The metrics, as the engine's own ``/metrics`` would show them."""
    if registry is None and "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    shown = registry or REGISTRY
    encode, kind = choose_encoder(accepted)
    return Response(encode(shown.restricted_registry(names) if names else shown), headers={"Content-Type": kind})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - for the types: it is registered for no other
    message = error.detail
    if error.status_code == 404:
        message = "no such path: use /metrics, /health or /corevital/v1/requests/ID"
    elif error.status_code == 405:
        message = "no such method here: use GET or HEAD"
    return answers.error(error.status_code, message, error.headers)
