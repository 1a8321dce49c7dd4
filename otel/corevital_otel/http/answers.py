"""The form of an answer: JSON, never kept by a proxy. An error is one object: ``{"error": "cause: fix"}``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

_NOT_KEPT: Final = {"Cache-Control": "no-store"}


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON."""
    return text(json.dumps(value, indent=2), status, headers)


def text(document: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document."""
    return Response(f"{document}\n", status, {**_NOT_KEPT, **(headers or {})}, media_type="application/json")


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error: its cause and the fix."""
    return as_json({"error": message}, status, headers)
