"""The templates: HTML from values, with every value escaped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from corevital.text import printable
from corevital_otel import __version__
from corevital_otel.risk.meaning import short_flag

FOLDER: Final = Path(__file__).parent
STATIC: Final = FOLDER / "static"
SCRIPTS: Final = ("htmx.min.js", "uPlot.iife.min.js", "uPlot.min.css")
"""What the build fetches into ``static/vendor``."""
POLICY: Final = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
        "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip
"""Only scripts and styles that are files of this page; a script in a value would not run even unescaped."""
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer. Without the referrer, a tracing backend that is linked to sees no filter of ours."""

_LONGEST: Final = 400
_UNKNOWN: Final = "\N{EN DASH}"


def missing_scripts(folder: Path = STATIC / "vendor") -> list[str]:
    """The scripts of others that this installation does not have."""
    return [name for name in SCRIPTS if not (folder / name).is_file()]


def is_partial(request: Request) -> bool:
    """Whether a script asks for a part of a page."""
    return request.headers.get("hx-request-type") == "partial"


class Pages:
    """All templates.

    Args:
        scripts: whether htmx and uPlot are there; without them pages do not ask for them.
    """

    def __init__(self, *, scripts: bool) -> None:
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals |= {"version": __version__, "scripts": scripts, "query": urlencode}
        self._templates.filters |= {"shown": _shown, "short_flag": short_flag, "fixed": _fixed, "seconds": _seconds}

    def show(self, request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
        """A page, or a part of one."""
        html = self._templates.get_template(template).render(path=request.scope["path"], **values)
        return HTMLResponse(html, status, {"Cache-Control": "no-store"})

    def error(self, request: Request, status: int, message: str) -> Response:
        """One line that names cause and fix."""
        template = "notice.html" if is_partial(request) else "error.html"
        return self.show(request, template, {"status": status, "message": message}, status)


def _shown(value: object, limit: int = _LONGEST) -> str:
    """A value of others in one line, with nothing that could turn the text around it."""
    return printable(value, limit)


def _fixed(value: float | None, digits: int = 2) -> str:
    return _UNKNOWN if value is None else f"{value:,.{digits}f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"
