"""``corevital hub``: the telemetry half as a separate process, for engines on several hosts."""

from __future__ import annotations

import socket

from corevital import log
from corevital.frames.engine_key import engine_key
from corevital_otel.cli.errors import CommandError
from corevital_otel.service.hub_process import run as run_hub
from corevital_otel.service.hub_process import until_signal
from corevital_otel.service.keeper import take
from corevital_otel.service.startup import prepare


def run() -> int:
    """Run the hub at ``COREVITAL_HUB`` until SIGTERM or Ctrl-C. Returns the exit status.

    Raises:
        CommandError: no address is set, or this host has a hub of that address already.
        SettingsError: a setting is wrong.
    """
    log.configure()
    settings = prepare()
    if settings.hub is None:
        raise CommandError(
            "COREVITAL_HUB is not set: set it to tcp://HOST:PORT, an address of this host, and COREVITAL_HUB_KEY to a "
            "secret, both the same on every host; engines on one host start a hub themselves",
            code=2,
        )
    with socket.socket(socket.AF_UNIX) as lock:
        if not take(lock, engine_key().hub.server):
            raise CommandError(
                f"a hub for COREVITAL_HUB={settings.hub} runs on this host already, by this command or by an engine: "
                "use that one, or start this one before the engines"
            )
        return 1 if run_hub(settings, until_signal()) else 0
