"""What answers at each path of the hub's port. Nothing here waits in the event loop's thread."""

from __future__ import annotations

import asyncio
import math
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
from corevital.text import printable
from corevital_otel.http import answers
from corevital_otel.http.access import HEALTH, Access
from corevital_otel.http.health import Health
from corevital_otel.store.lookup import document, several
from corevital_otel.store.reader import EmptyStoreError, StoreError, StoreReader, ids_of

LONGEST_WAIT_S: Final = 30.0
"""How long a request may wait for a report."""
_PLACE: Final = "the hub's HTTP port"
_POLL_S: Final = 0.1
_READERS: Final = 4
"""Threads that read the store or the metrics at a time."""
_SHOWN: Final = 100
"""Characters that are shown of an id or a value."""


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
        self._is_running = is_running
        self._db = db
        self._registry = registry
        self._readers = CapacityLimiter(_READERS)
        self.closing = False
        self._paths = Starlette(
            routes=[
                Route("/metrics", self._guarded(self._metrics)),
                Route(HEALTH, self._guarded(self._health)),
                Route("/corevital/v1/requests/{id:path}", self._guarded(self._request)),
            ],
            middleware=[Middleware(Access, token=token)],
            exception_handlers={HTTPException: _refused},
        )
        self._paths.router.redirect_slashes = False

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

    async def _request(self, request: Request) -> Response:
        request_id, clock = request.path_params["id"], asyncio.get_running_loop().time
        end = clock() + _wait_s(request)
        while True:
            found = await self._report(request_id)
            left = end - clock()
            if found.status_code not in (404, 425) or left <= 0 or self.closing or await request.is_disconnected():
                return found
            await asyncio.sleep(min(_POLL_S, left))

    async def _report(self, request_id: str) -> Response:
        shown = printable(repr(request_id[:_SHOWN]))
        if any(map(self._is_running, ids_of(request_id))):
            return answers.error(425, f"request {shown} is running: ask later, or with ?wait=SECONDS")
        db = self._db
        if db is None:
            return answers.error(404, "there is no store: set COREVITAL_DB")
        return await to_thread.run_sync(
            lambda: _stored(db, request_id, shown), limiter=self._readers, abandon_on_cancel=True
        )


def _exposition(registry: CollectorRegistry | None, accepted: str, names: list[str]) -> Response:
    """The metrics, as the engine's own ``/metrics`` would show them."""
    if registry is None and "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    shown = registry or REGISTRY
    encode, kind = choose_encoder(accepted)
    return Response(encode(shown.restricted_registry(names) if names else shown), headers={"Content-Type": kind})


def _stored(db: Path, request_id: str, shown: str) -> Response:
    """The report of one whole id: the start of one could be another request's, which is there earlier."""
    try:
        reports = StoreReader(db).get_whole(request_id)
    except EmptyStoreError:
        reports = []
    except StoreError:
        return answers.error(503, "the store cannot be read: `corevital doctor` shows why")
    if ids := several(reports):
        return answers.error(409, f"{shown} stands for several requests: use one of {ids}")
    if not reports:
        return answers.error(404, f"no request {shown} in the store: `corevital spans` lists all")
    return answers.text(document(reports))


def _wait_s(request: Request) -> float:
    """The longest time to wait, in seconds.

    Raises:
        HTTPException: it is not a number from 0 to 30.
    """
    given = request.query_params.getlist("wait")
    try:
        seconds = float(given[-1]) if given else 0.0
    except ValueError:
        seconds = math.nan
    if len(given) > 1 or not 0 <= seconds <= LONGEST_WAIT_S:
        shown = printable(repr(",".join(given)[:_SHOWN]))
        raise HTTPException(400, f"wait={shown} is not allowed: use one number of seconds from 0 to 30")
    return seconds


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # for the types: it is registered for no other
    message = error.detail
    if error.status_code == 404:
        message = "no such path: use /metrics, /health or /corevital/v1/requests/ID"
    elif error.status_code == 405:
        message = "no such method here: use GET or HEAD"
    return answers.error(error.status_code, message, error.headers)
