"""Who may see the page: this machine where there is no token, else a browser that has signed in, or a bearer of it."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from corevital_otel.http.access import NO_NAME, bears, is_local
from corevital_otel.http.challenge import CHALLENGE
from corevital_otel.ui.pages import Pages, is_partial

SIGN_IN: Final = "/sign-in"
COOKIE: Final = "corevital_ui"

_OPEN: Final = "/static/"
_LONGEST_FORM: Final = 8192
_WRONG_S: Final = 0.5
"""How long the answer to a wrong token takes."""
_NEEDED: Final = "this page needs a token: enter the value of COREVITAL_HTTP_TOKEN"
_ENDED: Final = "the session has ended: load the page again and sign in"
_WRONG: Final = "the token is wrong: enter the value that COREVITAL_HTTP_TOKEN has where `corevital ui` runs"


@dataclass(frozen=True, slots=True)
class _Secret:
    """The token, and what a browser has once it has sent it."""

    token: str
    session: str

    def is_known(self, request: Request) -> bool:
        """Whether a request has one of both. A proxy may add a header ``Authorization`` that is not for us."""
        if bears(request.headers.get("authorization", ""), self.token):
            return True
        return hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self.session.encode())


class Gate:
    """Answers those who may not see the page, and passes on the others.

    The token is in no URL. A browser that has sent it once gets a cookie, which ends with this process. Path and query
    are those of the ASGI scope, which routes the request; a URL would be made of the header ``Host`` as well.

    Args:
        app: gets what is allowed.
        token: that is needed; None: none is.
        pages: the templates.
    """

    def __init__(self, app: ASGIApp, token: str | None, pages: Pages) -> None:
        self._app = app
        self._secret = None if token is None else _Secret(token, secrets.token_urlsafe(32))
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        answer = self._app
        if scope["type"] == "http":
            answer = await self._answer(Request(scope, receive)) or answer
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        secret = self._secret
        if secret is None:
            local = is_local(request.headers.get("host", ""))
            return None if local else self._pages.error(request, 421, NO_NAME)
        path, query = request.scope["path"], request.scope["query_string"].decode("latin-1")
        if path == SIGN_IN and request.method == "POST":
            return await self._sign_in(request, secret)
        if path.startswith(_OPEN) or secret.is_known(request):
            return None
        if is_partial(request):
            return _challenged(self._pages.error(request, 401, _ENDED), {"HX-Refresh": "true"})
        return self._refusal(request, _NEEDED, f"{path}?{query}" if query else path)

    async def _sign_in(self, request: Request, secret: _Secret) -> Response:
        data = bytearray()
        try:
            async for part in request.stream():
                data += part
                if len(data) > _LONGEST_FORM:
                    return self._pages.error(request, 413, "the form is too long: enter only the token")
        except ClientDisconnect:
            return Response(status_code=400)
        form = parse_qs(data.decode("utf-8", "replace"))
        token, place = (form.get(name, [""])[0] for name in ("token", "next"))
        if not hmac.compare_digest(token.strip().encode(), secret.token.encode()):
            await asyncio.sleep(_WRONG_S)
            return self._refusal(request, _WRONG, place)
        answer = RedirectResponse(_own(place), 303)
        encrypted = request.scope["scheme"] == "https"
        answer.set_cookie(COOKIE, secret.session, httponly=True, samesite="lax", secure=encrypted)
        return answer

    def _refusal(self, request: Request, message: str, place: str) -> Response:
        answer = self._pages.show(request, "sign-in.html", {"message": message, "next": _own(place)}, 401)
        return _challenged(answer)


def _challenged(answer: Response, headers: Mapping[str, str] | None = None) -> Response:
    answer.headers.update({"WWW-Authenticate": CHALLENGE, **(headers or {})})
    return answer


def _own(place: str) -> str:
    """A path of this page, whatever a form had: never another host's."""
    plain = place.startswith("/") and not place.startswith(("//", "/\\", SIGN_IN)) and place.isprintable()
    return place if plain else "/"
