"""Debian's Chromium, from PATH or unpacked by ``make .venv/chromium/.unpacked``; and a page of ours for it to open."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

_UNPACKED = Path(__file__).resolve().parents[2] / ".venv/chromium"
_SWITCHES = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
CHROMIUM = Path(shutil.which("chromium") or _UNPACKED / "usr/lib/chromium/chromium")


@contextmanager
def browser() -> Iterator[Any]:
    """A running browser, as playwright has it."""
    from playwright.sync_api import sync_playwright

    libraries = _UNPACKED / "usr/lib/x86_64-linux-gnu"
    path = ":".join(map(str, (libraries, libraries / "pulseaudio", os.environ.get("LD_LIBRARY_PATH", ""))))
    env = {**os.environ, "LD_LIBRARY_PATH": path}
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=[*_SWITCHES], env=env)
        yield found
        found.close()


@contextmanager
def serving(application: Any) -> Iterator[str]:
    """An application on a free port of this machine; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(application, log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
