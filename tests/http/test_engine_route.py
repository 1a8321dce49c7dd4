"""The route to reports on the engine's own server: behind its key, and on no other application."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from corevital.engines.vllm import hooks
from corevital.engines.vllm.own_server import protect
from corevital_otel.http.engine_route import EngineRoute
from corevital_otel.http.reports import Reports


class AuthenticationMiddleware:
    """As vLLM's: it asks for a key under /v1, and nowhere else."""

    def __init__(self, app: ASGIApp, tokens: list[str]) -> None:
        self.app, self.tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
        if scope["path"].startswith("/v1") and given not in self.tokens:
            await PlainTextResponse("Unauthorized", 401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Engine:
    """A stand-in for an engine that is followed."""


class Arguments:
    api_key = ("sesame",)


def server(*layers: Middleware, arguments: Any = None) -> Starlette:
    application = Starlette(middleware=[*layers])
    application.state.engine_client = Engine()
    application.state.engine_client.__dict__[hooks._FOLLOWED] = object()
    application.state.args = arguments or type("None", (), {"api_key": None})
    return application


def ask(application: Starlette, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=application)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(call())


def routed(application: Starlette, db: Path | None, running: set[str] | None = None) -> Starlette:
    route = EngineRoute(protect, Reports(lambda request_id: request_id in (running or ()), db))
    for _ in range(2):  # it is called before each request
        route.add(application)
    return application


ONE = "/corevital/v1/requests/chatcmpl-one"


def test_the_report_is_behind_the_servers_key(store: Path) -> None:
    application = routed(server(Middleware(AuthenticationMiddleware, tokens=["sesame"]), arguments=Arguments), store)
    assert ask(application, ONE).status_code == 401
    assert ask(application, ONE, authorization="Bearer wrong").status_code == 401
    reply = ask(application, ONE, authorization="Bearer sesame")
    assert reply.status_code == 200
    assert reply.json()[0]["request_id"] == "chatcmpl-one"


def test_a_server_without_a_key_needs_none(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    application = routed(server(), store, {"chatcmpl-now"})
    assert ask(application, ONE).status_code == 200
    assert ask(application, "/corevital/v1/requests/none").status_code == 404
    assert ask(application, "/corevital/v1/requests/chatcmpl-now").status_code == 425
    for wait in ("soon", "-1", "31", "1&wait=2"):
        reply = ask(application, f"{ONE}?wait={wait}")
        assert reply.status_code == 400
        assert reply.json()["error"].endswith("is not allowed: use one number of seconds from 0 to 30")
    assert ask(application, ONE, "POST").status_code == 405
    assert ask(application, ONE, "OPTIONS").status_code == 405


def test_a_server_whose_check_is_not_found_has_no_route(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(routed(server(arguments=Arguments), store), ONE).status_code == 404
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    assert ask(routed(server(), store), ONE).status_code == 404


class Changed:
    """A check that guards other paths than vLLM's does, under its name."""

    def __init__(self, app: ASGIApp, tokens: list[str]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def test_a_check_that_lets_anyone_in_closes_the_route(store: Path) -> None:
    named: Any = type("AuthenticationMiddleware", (Changed,), {})
    application = routed(server(Middleware(named, tokens=["sesame"]), arguments=Arguments), store)
    assert ask(application, ONE).status_code == 404
    assert ask(application, ONE, authorization="Bearer sesame").status_code == 404


def test_an_application_that_is_not_the_engines_has_no_route(store: Path) -> None:
    assert ask(routed(Starlette(), store), ONE).status_code == 404
    other = Starlette()
    other.state.engine_client = Engine()
    assert ask(routed(other, store), ONE).status_code == 404


def test_an_operators_own_middleware_may_guard_only_the_engines_paths(tmp_path: Path) -> None:
    arguments = type("None", (), {"api_key": None, "middleware": ["company.auth.Tokens"]})
    application = routed(server(arguments=arguments), tmp_path / "corevital.db", {"chatcmpl-one"})
    assert ask(application, ONE).status_code == 404


def test_a_host_header_does_not_change_the_path_that_the_key_is_asked_for(tmp_path: Path) -> None:
    class ByUrl(AuthenticationMiddleware):
        """It takes the path from the URL, which older versions of Starlette make with the Host header."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            host = dict(scope["headers"]).get(b"host", b"server").decode()
            is_guarded = httpx.URL(f"http://{host}{scope['path']}").path.startswith("/v1")
            checked = {**scope, "path": "/v1" if is_guarded else "/"}
            await AuthenticationMiddleware(lambda _, *rest: self.app(scope, *rest), self.tokens)(checked, receive, send)

    ByUrl.__name__ = "AuthenticationMiddleware"
    application = routed(server(Middleware(ByUrl, tokens=["sesame"]), arguments=Arguments()), tmp_path / "corevital.db")
    assert ask(application, ONE, host="server/x").status_code == 401
    assert ask(application, ONE, host="server/x", authorization="Bearer sesame").status_code in (404, 425)
