"""The hub as a separate process: for engine cores without our Python frontend, on this host or on others.

It is the same hub as in an API server, but receives sequences from engine cores. An engine starts it
(:mod:`corevital_otel.service.keeper`), writes one line of JSON to its standard input, and keeps that open. The hub ends
when its input closes, so it outlives its engine by a few seconds at most, even after a crash. ``corevital hub`` runs it
in a terminal or as a service, for engines on other hosts.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from corevital import log
from corevital.frames.engine_key import engine_key
from corevital_otel import __version__
from corevital_otel.errors import SettingsError
from corevital_otel.otlp.destination import destination
from corevital_otel.otlp.resource import Facts
from corevital_otel.otlp.variables import tidy
from corevital_otel.service.cores import CORE_SILENT_S
from corevital_otel.service.keeper import CLEAN, IN_USE
from corevital_otel.service.loop import Hub
from corevital_otel.service.port import open_port
from corevital_otel.service.startup import line
from corevital_otel.settings import HTTP_OF_A_HUB, Settings, load

_LINE_BYTES: Final = 1 << 20
"""The longest line that is read from the engine."""


class Stop:
    """What ends a hub.

    Attributes:
        wanted: set when it is to end.
        failed: the engine that started it has failed.
    """

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.failed = False


def run(
    settings: Settings,
    stop: Stop,
    model: str = "",
    engine: Facts | None = None,
    kernel: str = "",
    *,
    quiet: bool = False,
    ready: Callable[[], object] = lambda: None,
    has_port: bool = True,
) -> int:
    """Run a hub until it is to end. Returns the exit status.

    Args:
        settings: the hub's.
        stop: ends it.
        model: the name that the engine's model is served under; "" where it serves several engines.
        engine: facts of the engine, for the resource of spans and metrics.
        kernel: the backend that will read that engine's logits, for the log.
        quiet: do not log that the address is in use; it was logged before.
        ready: called once it listens.
        has_port: see :class:`~corevital_otel.service.keeper.HubKeeper`.

    Raises:
        SettingsError: a setting or an ``OTEL_*`` variable is wrong.
    """
    identity, where = engine_key().hub, destination(os.environ)
    logger = logging.getLogger(log.LOGGER_NAME)
    try:
        hub = Hub(settings, model, engine=engine, where=where, identity=identity)
    except OSError as error:
        logger.log(
            logging.DEBUG if quiet else logging.ERROR,
            "the hub cannot listen on %s (%s): set COREVITAL_HUB to a free address of this host",
            identity.tcp or "its socket",
            error.strerror,
        )
        return IN_USE
    hub.start()
    ready()
    port = open_port(hub, settings, HTTP_OF_A_HUB if has_port else None)
    text = f"corevital {__version__} hub: listens on {identity.tcp}"
    if engine is not None:
        text = line(settings, model, engine, kernel, where)
    logger.info("%s%s", text, f", metrics and reports at http://{port.address}" if port else "")
    stop.wanted.wait()
    if port is not None:
        port.close(1.0)
    if hub.serves_cores():
        time.sleep(CORE_SILENT_S)  # by then it is known which of them still run
    hub.close(stop.failed)
    return 0


def until_signal() -> Stop:
    """What SIGTERM and SIGINT set. Call from the main thread."""
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.wanted.set())
    return stop


def _read_line() -> bytes:
    """The engine's line. Unbuffered: a thread that waits in a buffered read makes the interpreter abort at exit."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES and (byte := os.read(0, 1)):
        line += byte
    return line


def _when_closed(stop: Stop) -> None:
    last = b""
    while read := os.read(0, 4096):
        last = read
    stop.failed = not last.endswith(CLEAN)
    stop.wanted.set()


def main(ready: Callable[[], object] = lambda: None) -> int:
    """Run a hub for the engine that has started this process, and call ``ready`` once it listens."""
    log.configure()
    stop = until_signal()
    its_line = _read_line()
    if not its_line.endswith(b"\n"):  # the engine has ended already
        return 0
    given: Mapping[str, Any] = json.loads(its_line)
    threading.Thread(target=_when_closed, args=(stop,), name="corevital-engine", daemon=True).start()
    tidy()
    try:
        settings = load()  # warned about where the engine was started
        return run(
            settings,
            stop,
            given["model"],
            given["engine"],
            given["kernel"],
            quiet=bool(given.get("quiet")),
            ready=ready,
            has_port=bool(given.get("has_port", True)),
        )
    except SettingsError as error:
        sys.exit(f"corevital: {error}")


if __name__ == "__main__":
    sys.exit(main())
