"""Who may ask: anyone about ``/health``; about the rest those with the token, or, where there is none, this machine."""

from __future__ import annotations

import hmac
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from corevital_otel.addresses import parse
from corevital_otel.http import answers
from corevital_otel.http.challenge import CHALLENGE

HEALTH: Final = "/health"
_SCHEME: Final = "bearer "
NO_NAME: Final = "without COREVITAL_HTTP_TOKEN this port has no name: ask 127.0.0.1, [::1] or localhost"


class Access:
    """Answers those who may not ask, and passes on the others.

    Args:
        app: gets what is allowed.
        token: that a request must carry; None: none is needed.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        answer = self._app
        if scope["type"] == "http" and scope["path"] != HEALTH:
            answer = self._refusal(Headers(scope=scope)) or answer
        await answer(scope, receive, send)

    def _refusal(self, headers: Headers) -> Response | None:
        if self._token is None:
            return None if is_local(headers.get("host", "")) else answers.error(421, NO_NAME)
        given = headers.get("authorization", "")
        if not given:
            return _unauthorized("a token is needed: send the header Authorization: Bearer with COREVITAL_HTTP_TOKEN")
        if not bears(given, self._token):
            return _unauthorized("the token is wrong: send that of COREVITAL_HTTP_TOKEN")
        return None


def _unauthorized(message: str) -> Response:
    return answers.error(401, message, {"WWW-Authenticate": CHALLENGE})


def bears(header: str, token: str) -> bool:
    """Whether a header ``Authorization`` has this token."""
    scheme, given = header[: len(_SCHEME)].lower(), header[len(_SCHEME) :].strip()
    return scheme == _SCHEME and hmac.compare_digest(given.encode(), token.encode())


def is_local(host: str) -> bool:
    """Whether a Host header names this machine. A web page whose name was bound to 127.0.0.1 names its own host."""
    try:
        return parse(host).is_loopback
    except ValueError:  # perhaps without a port
        pass
    try:
        return parse(f"{host}:80").is_loopback
    except ValueError:
        return False
