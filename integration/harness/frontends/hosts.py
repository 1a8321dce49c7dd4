"""Two "hosts" on one machine: two network namespaces, joined by a virtual cable. Needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)


def why_not() -> str:
    """Why there can be no second host here; empty if there can."""
    if shutil.which("ip") is None:
        return "no `ip` here: install iproute2"
    name = f"corevital-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (OSError, subprocess.SubprocessError) as error:
        return f"no network namespace can be made here: {getattr(error, 'stderr', None) or error}"
    return ""


@dataclass(frozen=True)
class Hosts:
    """Addresses of this host and of the other one, and the prefix of a command that runs there."""

    here: str
    there: str
    prefix: list[str]


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """The second host is a network namespace with its own abstract sockets and loopback addresses; files are shared."""
    number = os.getpid() % 250 + 1
    name, ours, theirs = f"corevital-{number}", f"cva{number}", f"cvb{number}"
    here, there = f"198.18.{number}.1", f"198.18.{number}.2"  # reserved for tests of networks, RFC 2544
    _ip("netns", "add", name)
    try:
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        _ip("addr", "add", f"{here}/24", "dev", ours)
        _ip("link", "set", ours, "up")
        _ip("-n", name, "addr", "add", f"{there}/24", "dev", theirs)
        for device in ("lo", theirs):
            _ip("-n", name, "link", "set", device, "up")
        yield Hosts(here, there, ["ip", "netns", "exec", name])
    finally:
        _ip("netns", "del", name)  # and the cable with it
