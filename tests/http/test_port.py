"""The port in a process: where it listens, what it leaves alone, slow and broken clients, its end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from tests.http.conftest import Hub, Serve, connected, read_all

from corevital_otel.addresses import Address
from corevital_otel.http import connection, port
from corevital_otel.http.port import HttpPort

Logged = Callable[[], list[logging.LogRecord]]


def port_at(hub: Hub, address: Address) -> HttpPort:
    return HttpPort(address, None, lambda: hub.health, hub.running.__contains__, None)


def one_line(logged: Logged) -> str:
    (record,) = logged()
    assert record.levelname == "WARNING"
    assert record.exc_info is None or not record.exc_info
    return record.getMessage()


def test_a_port_in_use_is_one_line(hub: Hub, logged: Logged) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        refused = port_at(hub, Address("127.0.0.1", number))
        assert not refused.start()
        refused.close(5)
    assert one_line(logged) == (
        f"COREVITAL_HTTP=127.0.0.1:{number} cannot be opened (it is in use: end the other process), "
        "or set COREVITAL_HTTP to another address or to none"
    )
    assert not [thread for thread in threading.enumerate() if thread.name == "corevital-http"]


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("192.0.2.1", "this machine does not have that address: name one that it has"),
        ("2001:db8::1", "this machine does not have that address: name one that it has"),
        ("no-such-host.invalid", "its host is unknown: use an address in numbers"),
        ("x" * 70 + ".invalid", "its host is unknown: use an address in numbers"),
    ],
)
def test_an_address_of_no_use_is_one_line(hub: Hub, logged: Logged, host: str, says: str) -> None:
    assert not port_at(hub, Address(host, 9464)).start()
    assert f"cannot be opened ({says}), or set" in one_line(logged)


def test_a_name_that_resolves_too_slowly_is_one_line(hub: Hub, logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = threading.Event()
    monkeypatch.setattr(port, "_START_S", 0.2)
    original = socket.getaddrinfo

    def slowly(*arguments: Any, **named: Any) -> object:
        resolved.wait(20)
        return original(*arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    late = port_at(hub, Address("localhost", 0))
    begun = time.monotonic()
    assert not late.start()
    assert time.monotonic() - begun < 2
    assert "it does not open within 0.2 s" in one_line(logged)
    resolved.set()
    late.close(5)
    assert not [thread for thread in threading.enumerate() if thread.name == "corevital-http"], "it serves too late"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_it_listens_at_loopback_addresses(serve: Serve, host: str) -> None:
    client = serve(host=host)
    assert client.get("/health").status_code == 200
    assert str(client.port.address).startswith("[::1]:" if host == "::1" else f"{host}:")
    other = "127.0.0.1" if host == "::1" else "::1"
    with socket.socket(socket.AF_INET6 if other == "::1" else socket.AF_INET) as probe:
        assert probe.connect_ex((other, client.port.address.port)) != 0


def test_all_addresses_are_those_of_ipv4_too(serve: Serve) -> None:
    client = serve(host="::", token="0123456789abcdef")
    number = client.port.address.port
    for host in ("127.0.0.1", "[::1]"):
        assert client.get(f"http://{host}:{number}/health").status_code == 200


def test_half_a_request_holds_up_nobody(serve: Serve) -> None:
    client = serve()
    parts = (b"", b"G", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"POST /health HTTP/1.1\r\n")
    with ExitStack() as open_ones:
        for _ in range(10):
            for part in parts:
                open_ones.enter_context(closing(connected(client, part)))
        begun = time.monotonic()
        assert client.get("/health").status_code == 200
        client.port.close(10)
        assert time.monotonic() - begun < 4
        assert not client.port._thread.is_alive()


def test_half_a_request_is_ended(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_S", 0.3)
    client = serve()
    with closing(connected(client, b"GET /health HTTP/1.1\r\nX-Slow: ")) as slow:
        begun = time.monotonic()
        for _ in range(4):  # a byte now and then gives no more time
            time.sleep(0.05)
            slow.sendall(b"x")
        assert read_all(slow) == b""
        assert 0.2 < time.monotonic() - begun < 5


def test_an_answer_that_nobody_reads_is_ended(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_S", 0.2)
    monkeypatch.setattr(connection, "ANSWER_S", 0.3)
    monkeypatch.setattr("corevital_otel.http.application._exposition", lambda *_: Response(b"x" * (64 << 20)))
    client = serve()
    with closing(connected(client, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")) as made:
        time.sleep(1.5)
        assert client.get("/health").status_code == 200
        assert len(read_all(made)) < 64 << 20


def test_an_answer_that_nobody_reads_does_not_hold_up_the_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corevital_otel.http.application._exposition", lambda *_: Response(b"x" * (64 << 20)))
    client = serve()
    with closing(connected(client, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")) as made:
        time.sleep(0.5)
        begun = time.monotonic()
        client.port.close(10)
        assert time.monotonic() - begun < 4
        assert not client.port._thread.is_alive()
        assert not client.port._server.server_state.connections
        assert len(read_all(made)) < 64 << 20


def test_too_many_connections_are_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST", 5)
    client = serve()
    with ExitStack() as open_ones:
        for _ in range(5):
            open_ones.enter_context(closing(connected(client)))
        time.sleep(0.3)
        begun = time.monotonic()
        with closing(connected(client)) as one_more:
            assert read_all(one_more) == b""
        assert time.monotonic() - begun < 2
    time.sleep(0.3)
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"GET /health HTTP/1.1\r\nBad Header: 1\r\n\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\x00\r\n\r\n",
    ],
    ids=["tls", "header", "long", "hosts", "zero"],
)
def test_what_is_not_http_is_one_error(
    serve: Serve, data: bytes, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()
    with closing(connected(client)) as made:
        with suppress(OSError):
            made.sendall(data)
        answer = read_all(made)
    if answer:  # of a long one, the answer may be lost with the connection
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert body == b'{\n  "error": "the request is not valid HTTP, or is too long"\n}\n'
    assert answer or len(data) > 100_000
    assert client.get("/health").status_code == 200
    assert not logged()
    assert not [record for record in caplog.records if record.name.startswith(("uvicorn", "asyncio"))]


def test_a_body_is_not_waited_for(serve: Serve) -> None:
    client = serve()
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nsome"
    with closing(connected(client, request)) as made:
        assert read_all(made).startswith(b"HTTP/1.1 200 ")


def test_a_connection_carries_one_request(serve: Serve) -> None:
    client = serve()
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with closing(connected(client, request * 3)) as made:
        answer = read_all(made)
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert b"connection: close" in answer.lower()


def test_a_websocket_is_plain_http(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}
    assert serve().get("/nothing", headers=headers).status_code == 404
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_clients_that_vanish_leave_nothing(serve: Serve, hub: Hub) -> None:
    hub.running.add("late")
    client = serve()
    for _ in range(20):
        made = connected(client, b"GET /corevital/v1/requests/late?wait=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # the end is a reset
        time.sleep(0.01)
        made.close()
    assert client.get("/health").status_code == 200
    server = client.port._server
    deadline = time.monotonic() + 5
    while server.server_state.tasks and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not server.server_state.tasks, "nobody waits for these answers"


def test_other_servers_and_signals_of_the_process_are_left_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")]
    monkeypatch.setattr(loggers[2], "handlers", [logging.NullHandler()])

    def state() -> list[object]:
        kept = [(one.level, list(one.handlers), one.propagate, one.disabled) for one in loggers]
        return [*kept, *(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))]

    before = state()
    client = serve()
    assert client.get("/health?secret=1234567").status_code == 200
    assert state() == before
    assert not [record for record in caplog.records if "1234567" in record.getMessage() and record.name != "httpx"]
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]
    logging.getLogger("uvicorn.error").info("of another server")
    assert "of another server" in caplog.text
    client.port.close(5)
    assert not any(one.filters for one in loggers)


def test_close_is_idempotent_and_needs_no_start(hub: Hub) -> None:
    never = port_at(hub, Address("127.0.0.1", 0))
    never.close(1)
    never.close(1)
    begun = port_at(hub, Address("127.0.0.1", 0))
    assert begun.start()
    begun.close(5)
    begun.close(5)
    assert not begun._thread.is_alive()
    again = port_at(hub, begun.address)  # the port is free at once
    assert again.start()
    again.close(5)


def test_a_process_ends_without_closing_the_port(tmp_path: Path) -> None:
    program = (
        "import httpx\n"
        "from corevital_otel.addresses import Address\n"
        "from corevital_otel.http.health import Health\n"
        "from corevital_otel.http.port import HttpPort\n"
        "port = HttpPort(Address('127.0.0.1', 0), None, lambda: Health(1, 0, 0, 0), lambda _: False, None)\n"
        "assert port.start()\n"
        "assert httpx.get(f'http://{port.address}/metrics').status_code == 200\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
