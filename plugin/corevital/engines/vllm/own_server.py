"""vLLM's own HTTP server: how a route of ours gets behind its ``--api-key``."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from corevital.engines.vllm.hooks import follower
from corevital.log import warn_once

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

_GUARDED: Final = "/v1/corevital"
"""A path that vLLM asks for its key."""
_LAYER: Final = "AuthenticationMiddleware"


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
    if has_key and not layers:
        warn_once("own server", "vLLM's check of --api-key is not found: its port does not serve "
                  "/corevital/v1/requests; set COREVITAL_HTTP and ask there")  # fmt: skip
        return None
    for layer in layers:
        ours = _guarded(layer.cls(ours, *getattr(layer, "args", ()), **layer.kwargs))
    return ours


def _guarded(check: App) -> App:
    """vLLM asks for its key under ``/v1`` only."""

    async def call(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await check({**scope, "path": _GUARDED, "root_path": "", "app_root_path": ""}, receive, send)

    return call
