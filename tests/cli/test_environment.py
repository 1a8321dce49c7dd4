"""Commands in a wrong environment, and the doctor on collectors that hang or refuse."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from corevital_otel.cli.collector import answer
from corevital_otel.cli.doctor import _exporter
from corevital_otel.otlp.destination import Destination, destination

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
BAD = {
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "abc",
    "OTEL_PROPAGATORS": "tracecontext,b3",
    "OTEL_PYTHON_CONTEXT": "nothing_such",
    "OTEL_BSP_SCHEDULE_DELAY": "0",
    "OTEL_EXPORTER_OTLP_HEADERS": "Authorization: Bearer KEY",
    "COREVITAL_CAPTURE": "x",
}
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


def test_the_doctor_lists_every_wrong_variable_and_continues(cli: Cli) -> None:
    done = cli("doctor", "--json", "--url", "http://127.0.0.1:9", **BAD, **ENDPOINT)
    assert done.returncode == 1
    assert done.stderr == ""
    failed = [check["text"] for check in json.loads(done.stdout) if check["status"] == "fail"]
    for name in BAD:
        assert sum(text.startswith(f"{name}") for text in failed) == 1, name
    assert "KEY" not in done.stdout
    names = [check["name"] for check in json.loads(done.stdout)]
    assert names[-1] == "model runner"


@pytest.mark.parametrize("name", ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_PROPAGATORS", "OTEL_PYTHON_CONTEXT"])
@pytest.mark.parametrize("arguments", [["spans"], ["db", "export", "--otlp", "--dry-run"]])
def test_a_variable_that_opentelemetry_refuses_at_import_is_one_line(cli: Cli, name: str, arguments: list[str]) -> None:
    done = cli(*arguments, **{name: BAD[name]})
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"corevital: {name}={BAD[name]!r} is not allowed")


def test_help_needs_no_environment(cli: Cli) -> None:
    assert cli("spans", "--help", **BAD).returncode == 0
    assert cli("--version", **BAD).returncode == 0


@pytest.mark.parametrize("arguments", [["db", "export", "--otlp"], ["demo", "--requests", "10"]])
def test_commands_that_send_or_serve_check_all_variables(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments, **ENDPOINT, OTEL_BSP_SCHEDULE_DELAY="0")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("corevital: OTEL_BSP_SCHEDULE_DELAY='0' is not allowed: use a whole number from 1 up")


def test_empty_variables_count_as_unset(cli: Cli) -> None:
    done = cli("spans", **dict.fromkeys([*BAD, "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER"], ""))
    assert done.stderr.startswith("corevital: there is no store at runs/corevital.db")


@contextmanager
def silent() -> Iterator[int]:
    """A collector that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield listener.getsockname()[1]


@contextmanager
def http_server(status: int, content_type: str = "application/x-protobuf") -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def where(port: int, protocol: str) -> Destination:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    found = destination(env)
    assert found is not None
    return found


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_hangs_is_reported_in_time(protocol: str) -> None:
    with silent() as port:
        start = time.monotonic()
        status, text = answer(where(port, protocol), 1.0)
        assert time.monotonic() - start < 5
    assert status == "fail"
    assert "within 1 s" in text or "refuses spans" in text


def test_checks_that_overlap_leave_the_loggers_as_they_were() -> None:
    loggers = [logging.getLogger(name) for name in ("corevital", "corevital.otlp", "opentelemetry")]
    before = [logger.level for logger in loggers]
    with silent() as port:
        for _ in range(2):  # neither has ended when the next one begins
            answer(where(port, "http/protobuf"), 0.2)
    for thread in threading.enumerate():
        if thread.name == "corevital-doctor":
            thread.join(20)
    assert [logger.level for logger in loggers] == before


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, "check OTEL_EXPORTER_OTLP_HEADERS"), (404, "check the path in OTEL_EXPORTER_OTLP_ENDPOINT")],
)
def test_a_collector_that_refuses_is_reported_with_the_fix(status: int, expected: str) -> None:
    with http_server(status) as port:
        found, text = answer(where(port, "http/protobuf"))
    assert found == "fail"
    assert f"HTTP {status}" in text
    assert expected in text


def test_a_collector_that_answers_is_fine() -> None:
    with http_server(200) as port:
        assert answer(where(port, "http/protobuf")) == ("ok", "")


def test_another_exporter_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    check = _exporter()
    assert check.status == "warn"
    assert "OTEL_TRACES_EXPORTER=console does not list otlp" in check.text
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "NONE")
    assert _exporter().status == "none"
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "")
    check = _exporter()
    assert check.status == "fail"
    assert "http://127.0.0.1:9 cannot be reached by grpc (Connection refused): start the collector" in check.text
