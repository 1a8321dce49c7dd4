"""The caller's trace context is current inside a request, and only there."""

import asyncio
from typing import Any

import pytest
import starlette.applications
from opentelemetry import trace

from corevital_otel.http import current_parent, follow_requests

TRACEPARENT = b"00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starlette.applications.Starlette, "__call__", starlette.applications.Starlette.__call__)
    follow_requests()
    follow_requests()


async def ask(app: Any, headers: list[tuple[bytes, bytes]]) -> None:
    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "root_path": "", "query_string": b""}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        pass

    await app({**scope, "headers": headers}, receive, send)


def test_the_callers_span_is_the_parent_inside_the_request_and_gone_after_it() -> None:
    seen: list[Any] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_parent())

    app = starlette.applications.Starlette()
    app.router = endpoint  # type: ignore[assignment]
    asyncio.run(ask(app, [(b"Traceparent", TRACEPARENT)]))
    asyncio.run(ask(app, []))
    asyncio.run(ask(app, [(b"traceparent", b"nonsense")]))
    found = trace.get_current_span(seen[0]).get_span_context()
    assert f"{found.trace_id:032x}" == "0123456789abcdef0123456789abcdef"
    assert seen[1:] == [None, None]
    assert current_parent() is None
