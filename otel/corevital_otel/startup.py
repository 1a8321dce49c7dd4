"""The line in a server's log at its start: what is measured, how, and where it goes."""

from __future__ import annotations

from corevital_otel import __version__
from corevital_otel.destination import Destination
from corevital_otel.resource import Facts
from corevital_otel.settings import Settings


def line(settings: Settings, model: str, engine: Facts, kernel: str, where: Destination | None) -> str:
    """The line.

    Args:
        settings: the server's.
        model: the name it is served under.
        engine: facts of the engine and its device.
        kernel: the backend that is to read the logits.
        where: where spans go.
    """
    parts = (
        f"{engine['engine.name']} {engine['engine.version']}",
        f"runner {engine['engine.runner']}",
        f"kernel {kernel} on {engine.get('device.type', 'an unknown device')}",
        f"capture {settings.capture}",
        f"sample rate {settings.sample_rate:g}",
        f"store {settings.db.absolute() if settings.db else 'none'}",
        f"spans to {f'{where.endpoint} by {where.protocol}' if where else 'no endpoint'}",
    )
    return f"corevital {__version__} measures {model}: {', '.join(parts)}"
