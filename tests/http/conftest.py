"""A port of the hub, with real sockets."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from corevital_otel.addresses import Address
from corevital_otel.counters import Counters
from corevital_otel.http.health import Health
from corevital_otel.http.port import HttpPort
from corevital_otel.report import Health as ReportHealth
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]


class Hub:
    """A stand-in for the hub's loop: what the port asks of it, set by the test."""

    def __init__(self) -> None:
        self.health = Health(uptime_s=12.5, turned_s=0.2, running=3, queue=4, store_writable=True)
        self.running: set[str] = set()

    def set(self, **changes: Any) -> None:
        self.health = dataclasses.replace(self.health, **changes)


class Client(httpx.Client):
    """A client of a port, with no proxy between them."""

    def __init__(self, port: HttpPort) -> None:
        super().__init__(base_url=f"http://{port.address}", timeout=20, trust_env=False)
        self.port = port


Serve = Callable[..., Client]


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def store(tmp_path: Path, report: Make) -> Path:
    path = tmp_path / "corevital.db"
    write(path, report(request_id="chatcmpl-one"))
    write(path, report(request_id="cmpl-two", health=ReportHealth(truncated=True)), number=2)
    write(path, report(request_id="cmpl-two", sequence=1), number=3)
    return path


def connected(client: httpx.Client, data: bytes = b"") -> socket.socket:
    made = socket.create_connection((client.base_url.host, client.base_url.port), timeout=10)
    made.sendall(data)
    return made


def read_all(made: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        while part := made.recv(1 << 16):
            data += part
    return data


def write(path: Path, report: RequestReport, number: int = 1) -> None:
    writer = StoreWriter(path, 36_500, 1024, Counters())
    writer.put(record_of(report, SpanIds(f"{number:032x}", f"{number:016x}")))
    writer.close(10)


@pytest.fixture
def serve(hub: Hub) -> Iterator[Serve]:
    """Opens a port and gives a client of it. Afterwards no thread of either is left."""
    before = set(threading.enumerate())
    ports: list[HttpPort] = []
    clients: list[Client] = []

    def begin(db: Path | None = None, token: str | None = None, host: str = "127.0.0.1", **others: Any) -> Client:
        port = HttpPort(Address(host, 0), token, lambda: hub.health, hub.running.__contains__, db, **others)
        assert port.start()
        ports.append(port)
        client = Client(port)
        clients.append(client)
        return client

    yield begin
    for client in clients:
        client.close()
    for port in ports:
        port.close(10)
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left
