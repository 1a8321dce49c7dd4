"""Which view answers at each path, and what every answer has. Nothing here waits in the event loop's thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corevital.guard import swallow
from corevital.text import MAX_BYTES, printable
from corevital_otel.store.files import EmptyStoreError, StoreError
from corevital_otel.store.lookup import document
from corevital_otel.store.reader import StoredReport
from corevital_otel.ui import asked, comparison, listing, now, trends
from corevital_otel.ui import request as one_request
from corevital_otel.ui.access import Gate
from corevital_otel.ui.asked import AskedError
from corevital_otel.ui.now import Live
from corevital_otel.ui.pages import HEADERS, STATIC, Pages, is_partial, missing_scripts
from corevital_otel.ui.request import TraceLink

_READERS: Final = 4
"""Threads that read the store at a time."""
_SHOWN: Final = 100
_PATHS: Final = "/requests"

Answer = Callable[[Request], Awaitable[Response]]


class _Headers:
    """Adds :data:`HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, sent)


class Application:
    """The page.

    Args:
        db: the store's file.
        token: that is needed; None: none is, and only this machine may ask.
        link: where traces can be seen.
        live: reads the running server; None: there is none.
    """

    def __init__(self, db: Path, token: str | None, link: TraceLink | None = None, live: Live | None = None) -> None:
        self._db = db
        self._link = link
        self._live = live
        self._comparing = CapacityLimiter(1)
        self._readers = CapacityLimiter(_READERS)
        self._pages = Pages(scripts=not missing_scripts())
        paths = {"/": self._home, "/requests": self._requests, "/request": self._request}
        paths |= {"/series": self._series, "/report": self._report}
        paths |= {"/now": self._now, "/trends": self._trends, "/compare": self._compare}
        self._app = Starlette(
            routes=[
                *(Route(path, self._guarded(answer)) for path, answer in paths.items()),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            middleware=[Middleware(_Headers), Middleware(Gate, token=token, pages=self._pages)],
            exception_handlers={HTTPException: self._refused},
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        await self._app(scope, receive, send)

    def _guarded(self, answer: Answer) -> Answer:
        async def call(request: Request) -> Response:
            try:
                return await answer(request)
            except AskedError as error:
                return self._pages.error(request, 400, str(error))
            except EmptyStoreError as error:
                return self._pages.error(request, 404, _without_option(error))
            except StoreError as error:
                return self._pages.error(request, 503, _without_option(error))
            except HTTPException:
                raise
            except Exception:
                swallow("corevital ui")
                return self._pages.error(request, 500, "an error inside corevital: please report it")

        return call

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - for the types: it is registered for no other
        message = error.detail
        if error.status_code == 404:
            message = "there is no such page: use the links above"
        elif error.status_code == 405:
            message = "no such method here: use GET"
        return self._pages.error(request, error.status_code, message)

    async def _read(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return await to_thread.run_sync(
            partial(work, *arguments, **named), limiter=self._readers, abandon_on_cancel=True
        )

    async def _home(self, request: Request) -> Response:
        return RedirectResponse(_PATHS)

    async def _requests(self, request: Request) -> Response:
        wanted, part = asked.read(request.query_params), is_partial(request)
        url = wanted.link("/requests")
        if not part and (moved := _tidied(request, url)) is not None:
            return moved
        values = await self._read(listing.view, self._db, wanted, part=part)
        answer = self._pages.show(request, "rows.html" if part else "requests.html", values)
        if part:
            answer.headers["HX-Push-Url"] = url
        return answer

    async def _request(self, request: Request) -> Response:
        report, siblings = await self._found(request)
        if report is None:
            return self._unknown(request, siblings)
        values = await self._read(one_request.view, report, siblings, _whole(request, "from"), self._link)
        return self._pages.show(request, "request.html", values)

    async def _series(self, request: Request) -> Response:
        report, siblings = await self._found(request)
        if report is None or report.series is None:
            return self._unknown(request, siblings)
        values = await self._read(one_request.series_json, report)
        return JSONResponse(values, headers={"Cache-Control": "no-store"})

    async def _report(self, request: Request) -> Response:
        request_id = request.query_params.get("id", "")
        siblings: list[StoredReport] = await self._read(one_request.all_of, self._db, request_id)
        if not siblings:
            return self._unknown(request, siblings)
        text = await self._read(document, siblings)
        return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def _now(self, request: Request) -> Response:
        values = await self._read(now.view, self._live)
        return self._pages.show(request, "now-part.html" if is_partial(request) else "now.html", values)

    async def _trends(self, request: Request) -> Response:
        wanted, part = asked.read(request.query_params), is_partial(request)
        url = wanted.link("/trends", sort="", page="")
        if not part and (moved := _tidied(request, url)) is not None:
            return moved
        values = await self._read(trends.view, self._db, wanted)
        answer = self._pages.show(request, "trends-part.html" if part else "trends.html", values)
        if part:
            answer.headers["HX-Push-Url"] = url
        return answer

    async def _compare(self, request: Request) -> Response:
        a, b = (request.query_params.get(side, "").strip()[:MAX_BYTES] for side in ("a", "b"))
        values = await to_thread.run_sync(
            partial(comparison.view, self._db, a, b), limiter=self._comparing, abandon_on_cancel=True
        )
        return self._pages.show(request, "compare.html", values, 400 if values["error"] else 200)

    async def _found(self, request: Request) -> tuple[StoredReport | None, list[StoredReport]]:
        request_id, span_id = (request.query_params.get(name, "") for name in ("id", "span"))
        found: tuple[StoredReport | None, list[StoredReport]] = await self._read(
            one_request.find, self._db, request_id, span_id, _whole(request, "sequence")
        )
        return found

    def _unknown(self, request: Request, siblings: list[StoredReport]) -> Response:
        shown = printable(repr(request.query_params.get("id", "")[:_SHOWN]))
        if siblings:
            return self._pages.error(request, 404, f"request {shown} has no such sequence, or no series: go back")
        return self._pages.error(
            request, 404, f"no request {shown} in the store: it was never kept, or was pruned; the list has all"
        )


def _tidied(request: Request, url: str) -> Response | None:
    """A redirect to the URL without empty parts, as a form sends them where no script runs."""
    has_empty = any(not value for _, value in request.query_params.multi_items())
    return RedirectResponse(url, 303) if has_empty else None


def _whole(request: Request, name: str) -> int:
    """A whole number from the URL; 0 where there is none.

    Raises:
        AskedError: it is something else.
    """
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise AskedError(f"{name}={printable(repr(text[:_SHOWN]))} is not allowed: use a whole number from 0 up")
    return int(text)


def _without_option(error: StoreError) -> str:
    """A message for a page: ``--db`` is where the page was started."""
    return (
        str(error)
        .replace("name it with --db", "start `corevital ui` with --db")
        .replace("name another file with --db", "start `corevital ui` with another --db")
    )
