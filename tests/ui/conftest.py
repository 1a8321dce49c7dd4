"""The page over a store, asked as a browser without scripts asks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.harness import served

from corevital_otel.report import RequestReport
from corevital_otel.ui.application import Application


class Browser:
    """Asks the application without a network. It keeps cookies."""

    def __init__(self, application: Application) -> None:
        self._transport = httpx.ASGITransport(application)
        self.cookies = httpx.Cookies()

    def get(self, place: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._ask("GET", place, options))

    def post(self, place: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._ask("POST", place, options))

    async def _ask(self, method: str, place: str, options: dict[str, Any]) -> httpx.Response:
        options.setdefault("follow_redirects", True)
        base = "http://127.0.0.1:8765"
        async with httpx.AsyncClient(transport=self._transport, base_url=base, cookies=self.cookies) as client:
            answer = await client.request(method, place, **options)
            self.cookies = client.cookies
            return answer


Browse = Callable[..., Browser]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return served.fill(tmp_path / "corevital.db", served.traffic(120))


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 10,000 requests."""
    path = served.fill(tmp_path_factory.mktemp("large") / "large.db", served.traffic(400))
    return served.multiply(path, 25)


@pytest.fixture
def browse() -> Browse:
    def begin(db: Path, token: str | None = None, **options: Any) -> Browser:
        return Browser(Application(db, token, **options))

    return begin


@pytest.fixture
def one(tmp_path: Path, report: Callable[..., RequestReport]) -> Callable[..., Path]:
    """A store with one report."""

    def make(**changes: Any) -> Path:
        return served.fill(tmp_path / "one.db", [report(**changes)])

    return make
