"""The demo's server and requests, with a proxy in the environment, signals and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from corevital_otel.cli.demo.server import Server, ServerError, client, free_port, post

DEMO = """
import sys, time
from pathlib import Path
from corevital_otel.cli.demo.command import _stoppable
from corevital_otel.cli.demo.server import Server, free_port
with _stoppable(), Server(free_port(), Path("log"), {}, ("sleep", "321")) as server:
    print(server._process.pid, flush=True)
    server.wait_ready(lambda gone: None)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(321)"


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.send_error(400, "no")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_proxy_in_the_environment_is_ignored(refusing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with client(f"http://127.0.0.1:{refusing}") as server, pytest.raises(ServerError, match="answered HTTP 400"):
        post(server, "/v1/completions", {})


def test_a_server_that_is_gone_is_one_line() -> None:
    gone = client(f"http://127.0.0.1:{free_port()}")
    with gone, pytest.raises(ServerError, match="the server does not answer") as error:
        post(gone, "/v1/completions", {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_demo_stops_the_server_too(tmp_path: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen([sys.executable, "-c", DEMO], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    with demo:
        assert demo.stdout is not None
        group = int(demo.stdout.readline())
        demo.send_signal(number)
        assert demo.wait(30) == 128 + number
    assert not alive(group)


def test_ctrl_c_while_it_starts_is_prompt(tmp_path: Path) -> None:
    server = Server(free_port(), tmp_path / "log", {}, (sys.executable, "-c", STUBBORN))
    while not (tmp_path / "log").read_text():
        time.sleep(0.05)
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < 5
    assert not alive(server._process.pid)


def test_a_second_ctrl_c_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(free_port(), tmp_path / "log", {}, (sys.executable, "-c", STUBBORN))
    while not (tmp_path / "log").read_text():
        time.sleep(0.05)
    group = server._process.pid
    waits = server._gone

    def interrupted(timeout_s: float) -> bool:
        monkeypatch.setattr(server, "_gone", waits)
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "_gone", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    assert not alive(group)
