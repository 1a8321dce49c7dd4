"""vLLM's own HTTP server: how a route of ours gets behind its ``--api-key``."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from corevital.engines.vllm.hooks import follower
from corevital.log import warn_once

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

_GUARDED: Final = "/v1/chat/completions"
"""A path for which vLLM asks for its key, in every version."""
_LAYER: Final = "AuthenticationMiddleware"
_PROBE: Final = "corevital.probe"


def protect(application: Any, ours: App) -> App | None:
    """Put vLLM's own check of its key in front of an application of ours.

    Args:
        application: any that has begun to serve in this process.
        ours: gets the requests that pass.

    Returns:
        None where the application is not the server of an engine that we follow, or its check is not found.
    """
    state = getattr(application, "state", None)
    if follower(getattr(state, "engine_client", None)) is None:
        return None
    arguments = getattr(state, "args", None)
    layers = [layer for layer in application.user_middleware if getattr(layer.cls, "__name__", "") == _LAYER]
    has_key = arguments is None or getattr(arguments, "api_key", None) or os.environ.get("VLLM_API_KEY")
    has_others = bool(getattr(arguments, "middleware", None))  # of the operator, which may know only vLLM's paths
    if (has_key or has_others) and not layers:
        _warn()
        return None
    for layer in layers:
        ours = _guarded(layer, ours)
    return ours


def _guarded(layer: Any, ours: App) -> App:
    """An application of ours behind one of vLLM's layers, which knows only vLLM's own paths."""
    check, probe = (layer.cls(app, *getattr(layer, "args", ()), **layer.kwargs) for app in (ours, _note))

    async def call(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        # by its Host, Starlette may take a path for another one
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"host"]
        shown = {**scope, "path": _GUARDED, "root_path": "", "app_root_path": "", "headers": headers}
        reached: list[bool] = []
        await probe({**shown, "method": "GET", "headers": [], _PROBE: reached}, receive, _drop)
        if reached:  # without a key: better no route than an open one
            _warn()
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await check(shown, receive, send)

    return call


async def _note(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    scope[_PROBE].append(True)


async def _drop(message: object) -> None:
    pass


def _warn() -> None:
    warn_once(
        "own server",
        "vLLM's check of --api-key is not found: its port does not serve /corevital/v1/requests; "
        "set COREVITAL_HTTP and ask there",
    )
