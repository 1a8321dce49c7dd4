"""Network addresses in settings: ``host:port``. A host is an IPv4 address, an IPv6 address in brackets, or a name."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

_TCP: Final = "tcp://"
_FORM: Final = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[\w.-]+)):(?P<port>\d{1,5})", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII | re.IGNORECASE)
_LONGEST_NAME: Final = 253
_MOST: Final = 65_535


class Address(NamedTuple):
    """Where a process listens or connects; a host is without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def parse(text: str) -> Address:
    """The address that ``host:port`` stands for.

    Raises:
        ValueError: another form.
    """
    match = _FORM.fullmatch(text)
    if not match or not 0 < int(match["port"]) <= _MOST:
        raise ValueError("no address")
    if match["six"] is not None:
        return Address(str(ipaddress.IPv6Address(match["six"])), int(match["port"]))
    host = match["host"]
    if re.fullmatch(r"[\d.]+", host):
        return Address(str(ipaddress.IPv4Address(host)), int(match["port"]))
    if len(host) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, host.removesuffix(".").split("."))):
        raise ValueError("no name of a host")
    return Address(host, int(match["port"]))


def parse_tcp(text: str) -> Address:
    """The address that ``tcp://host:port`` stands for.

    Raises:
        ValueError: another form.
    """
    if not text.startswith(_TCP):
        raise ValueError("no address of TCP")
    return parse(text.removeprefix(_TCP))
