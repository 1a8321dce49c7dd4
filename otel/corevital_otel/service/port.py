"""The optional HTTP port of a hub."""

from __future__ import annotations

from corevital_otel.addresses import Address
from corevital_otel.http.port import HttpPort
from corevital_otel.service.loop import Hub
from corevital_otel.settings import Settings


def open_port(hub: Hub, settings: Settings, default: Address | None = None) -> HttpPort | None:
    """Serve a hub's state, metrics and reports. None if it has no port, or could not open it, which is logged.

    Args:
        hub: the hub.
        settings: have the address and the token.
        default: the address if ``COREVITAL_HTTP`` is not set.
    """
    address = settings.http_address(default)
    if address is None:
        return None
    port = HttpPort(address, settings.http_token, hub.health, hub.is_running, settings.db)
    return port if port.start() else None
