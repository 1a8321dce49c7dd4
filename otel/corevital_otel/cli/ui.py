"""``corevital ui``: a web page over the store and a running server."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Any, Final

import uvicorn

from corevital.text import printable
from corevital_otel.addresses import Address
from corevital_otel.cli.common import print_text, store_path
from corevital_otel.cli.errors import CommandError
from corevital_otel.cli.live import LiveServer
from corevital_otel.cli.terminal import print_error
from corevital_otel.http.port import cause_of, listen
from corevital_otel.settings import load
from corevital_otel.store.listing import Listing
from corevital_otel.store.reader import EmptyStoreError, StoreError

_MISSING_EXTRA: Final = "the page needs jinja2: pip install 'corevital[ui]'"
_CLOSE_S: Final = 2
"""How long answers may take to end after Ctrl-C."""
_SHOWN: Final = 100


def run(*, db: Path | None, host: str, port: int, url: str, trace_url: str | None) -> None:
    """See :func:`corevital_otel.cli.app.ui`."""
    try:
        from corevital_otel.ui.application import Application
        from corevital_otel.ui.pages import missing_scripts
        from corevital_otel.ui.request import TraceLink
    except ModuleNotFoundError:
        raise CommandError(_MISSING_EXTRA) from None
    address, token = Address(host.strip("[]"), port), load().http_token
    if token is None and not address.is_loopback:
        raise CommandError(
            f"--host {printable(host, _SHOWN)} can be reached from other hosts and needs COREVITAL_HTTP_TOKEN: set it "
            "to a secret such as the output of `openssl rand -hex 32`, or leave out --host",
            2,
        )
    path = store_path(db)
    _require_readable(path)
    link = None if trace_url is None else TraceLink(_template(trace_url))
    with _listener(address) as listener:
        application = Application(path, token, link, LiveServer(url))
        if missing := missing_scripts():
            print_error(
                f"this installation has no {', '.join(missing)}, so the page works without scripts: build corevital "
                "where npm is installed"
            )
        where = Address(address.host, listener.getsockname()[1])
        sign_in = "; sign in with COREVITAL_HTTP_TOKEN" if token else ""
        print_text(f"corevital ui: http://{where} shows {path}{sign_in}; Ctrl-C ends it")
        sys.stdout.flush()  # also into a pipe, before it serves
        _serve(application, listener)


def _require_readable(path: Path) -> None:
    """A store that is not there yet is only reported: a server may be about to make it.

    Raises:
        CommandError: it is there and cannot be read.
    """
    try:
        Listing(path).choices()
    except EmptyStoreError as error:
        print_error(str(error))
    except StoreError as error:
        raise CommandError(str(error)) from None


def _template(text: str) -> str:
    """The URL of a trace.

    Raises:
        CommandError: it is not one.
    """
    if not re.fullmatch(r"https?://[!-~]+", text) or "{trace_id}" not in text:
        raise CommandError(
            f"--trace-url {printable(repr(text[:_SHOWN]))} is not the URL of a trace: use one such as "
            "http://localhost:16686/trace/{trace_id}",
            2,
        )
    return text


def _listener(address: Address) -> socket.socket:
    try:
        return listen(address)
    except (OSError, UnicodeError) as error:
        raise CommandError(
            f"the page cannot open {address} ({cause_of(error)}), or choose another with --port"
        ) from None


def _serve(application: Any, listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM. Nothing is logged: a URL has filters and ids."""
    config = uvicorn.Config(
        application,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_CLOSE_S,
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        return
