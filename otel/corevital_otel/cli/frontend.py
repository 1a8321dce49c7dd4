"""``corevital doctor``'s check ``frontend``: who takes the requests, and where what became of them is found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from corevital_otel.cli.check import Check
from corevital_otel.cli.engines import Engine
from corevital_otel.cli.scrape import Page, ScrapeError, base, parsed, read, scrape
from corevital_otel.otlp.destination import shown
from corevital_otel.settings import HTTP_OF_A_HUB, NONE

HUB: Final = "COREVITAL_HUB"
HTTP: Final = "COREVITAL_HTTP"
_UNOBSERVED: Final = "corevital_sequences_unobserved_total"


def hub_url(environ: Mapping[str, str]) -> str | None:
    """Where a hub process on this host has its own port; None where ``COREVITAL_HTTP`` is ``none``."""
    where = environ.get(HTTP, "").strip() or str(HTTP_OF_A_HUB)
    return None if where == NONE else base(where)


def hub_page(environ: Mapping[str, str]) -> Page:
    """The metrics of the hub process on this host.

    Raises:
        ScrapeError: there is none, or its page cannot be used.
    """
    if (url := hub_url(environ)) is None:
        raise ScrapeError(f"{HTTP}={NONE}: the hub has no port")
    return scrape(url)


def check(engine: Engine, url: str, environ: Mapping[str, str] = os.environ) -> Check:
    """Which frontend is in use, and whether its requests are followed: by it, or from the engine core.

    Args:
        engine: the engine of this environment.
        url: of the server; none need be running.
        environ: the environment's variables.
    """
    other = next(
        (f"{name} ({variable})" for variable, name in engine.frontends.items() if _is_on(environ.get(variable))), None
    )
    where = f"{shown(base(url))}/metrics"
    try:
        text = read(url)
    except ScrapeError:
        text = ""
    if f"\n{engine.metrics}" not in f"\n{text}":
        return _unasked(engine, other, environ)
    pages = _pages(url, text, environ)
    if lost := max((page.total(_UNOBSERVED) for page in pages.values()), default=0.0):
        what = f"{lost:.0f} sequences were measured neither by {other or 'the frontend'} nor from the engine core"
        return Check("frontend", "fail", f"{what}: the engine's log names the cause and the fix")
    if "server" in pages:
        return Check("frontend", "ok", f"{engine.name}'s Python API server: requests are followed there; {where}")
    in_python = "\npython_info{" in f"\n{text}"  # the page of a Prometheus client for Python names its interpreter
    name = other or f"{'' if in_python else 'a frontend other than '}{engine.name}'s Python API server"
    if "hub" in pages and not in_python:
        return Check("frontend", "ok", f"{name}: requests are followed from the engine core; {_port(environ)}")
    fix = f"serve with `{engine.serve}`, or set {HTTP} as the hub has it"
    cause = "it has no corevital metrics" if in_python else f"no hub answers at {_port(environ)}"
    return Check("frontend", "warn", f"{name} at {where}, and {cause}: {fix}")


def _is_on(value: str | None) -> bool:
    return (value or "0").strip() not in ("", "0")


def _unasked(engine: Engine, other: str | None, environ: Mapping[str, str]) -> Check:
    """What the environment alone says: no server of this engine answers."""
    through = f", and reported through {shown(hub)}" if (hub := environ.get(HUB, "").strip()) else ""
    if other is None:
        text = f"{engine.name}'s Python API server: requests are followed there{through}"
    else:
        text = f"{other}: requests are followed from the engine core{through}; metrics are at {_port(environ)}"
    return Check("frontend", "ok", text)


def _pages(url: str, text: str, environ: Mapping[str, str]) -> dict[str, Page]:
    """The pages with corevital metrics: the server's own, and the hub's."""
    pages = {}
    with suppress(ScrapeError):
        pages["server"] = parsed(url, text)
    with suppress(ScrapeError):
        pages["hub"] = hub_page(environ)
    return pages


def _port(environ: Mapping[str, str]) -> str:
    """The hub's page of metrics."""
    url = hub_url(environ)
    return f"no port ({HTTP}={NONE})" if url is None else f"{shown(url)}/metrics"
