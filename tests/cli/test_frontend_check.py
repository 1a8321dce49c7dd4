"""``corevital doctor``'s check ``frontend``: which one is in use, and where its requests are found.

The servers are stand-ins: real HTTP, with lines as on the pages of vLLM's Python API server, its Rust frontend, a hub.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from corevital_otel.cli.doctor import _metrics
from corevital_otel.cli.engines import VLLM
from corevital_otel.cli.frontend import check

RUST = {"VLLM_USE_RUST_FRONTEND": "1"}
PYTHON_INFO = 'python_info{implementation="CPython",major="3",minor="11"} 1.0\n'
ENGINE = 'vllm:num_requests_running{model_name="m"} 1.0\n'
OURS = 'corevital_requests_total{gen_ai_request_model="m"} 7.0\ncorevital_sequences_unobserved_total %d.0\n'
NOWHERE = "http://127.0.0.1:9"


@contextmanager
def page(text: str) -> Iterator[str]:
    """A server whose ``/metrics`` is this text."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "vLLM's Python API server: requests are followed there"),
        ({"VLLM_USE_RUST_FRONTEND": "0"}, "vLLM's Python API server: requests are followed there"),
        (RUST, "vLLM's Rust frontend (VLLM_USE_RUST_FRONTEND): requests are followed from the engine core"),
        (RUST, "metrics are at http://127.0.0.1:9464/metrics"),
        ({**RUST, "COREVITAL_HTTP": "10.0.0.7:9500"}, "metrics are at http://10.0.0.7:9500/metrics"),
        ({**RUST, "COREVITAL_HUB": "tcp://10.0.0.1:9465"}, "reported through tcp://10.0.0.1:9465"),
    ],
)
def test_without_a_server_the_environment_names_frontend_hub_and_port(environ: dict[str, str], expected: str) -> None:
    found = check(VLLM, NOWHERE, environ)
    assert (found.name, found.status) == ("frontend", "ok")
    assert expected in found.text


def test_a_servers_own_metrics_show_the_python_api_server() -> None:
    with page(PYTHON_INFO + ENGINE + OURS % 0) as server:
        found = check(VLLM, server, {"COREVITAL_HTTP": NOWHERE})
    assert found.status == "ok"
    assert found.text == f"vLLM's Python API server: requests are followed there; {server}/metrics"


@pytest.mark.parametrize("environ", [RUST, {}], ids=["chosen here", "chosen elsewhere"])
def test_another_frontend_is_followed_from_the_engine_core_where_the_hub_answers(environ: dict[str, str]) -> None:
    with page(ENGINE) as server, page(OURS % 0) as hub:
        found = check(VLLM, server, {**environ, "COREVITAL_HTTP": hub})
    assert found.status == "ok"
    name = "vLLM's Rust frontend (VLLM_USE_RUST_FRONTEND)" if environ else "other than vLLM's Python API server"
    assert f"{name}: requests are followed from the engine core; {hub}/metrics" in found.text


def test_no_hub_is_a_warning_with_its_fix() -> None:
    with page(ENGINE) as server:
        found = check(VLLM, server, {"COREVITAL_HTTP": NOWHERE})
    assert found.status == "warn"
    assert f"a frontend other than vLLM's Python API server at {server}/metrics" in found.text
    assert f"no hub answers at {NOWHERE}/metrics: serve with `vllm serve MODEL --logits-proc" in found.text


def test_a_python_api_server_without_corevital_is_a_warning_whatever_hub_there_is() -> None:
    with page(PYTHON_INFO + ENGINE) as server, page(OURS % 0) as hub:
        found = check(VLLM, server, {"COREVITAL_HTTP": hub})
    assert found.status == "warn"
    assert found.text.startswith(
        f"vLLM's Python API server at {server}/metrics, and it has no corevital metrics: serve"
    )


@pytest.mark.parametrize("where", ["server", "hub"])
def test_sequences_that_nobody_measured_are_a_failure(where: str) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(page(ENGINE + (OURS % 5 if where == "server" else "")))
        hub = stack.enter_context(page(OURS % 5)) if where == "hub" else NOWHERE
        found = check(VLLM, server, {**RUST, "COREVITAL_HTTP": hub})
    assert found.status == "fail"
    assert "5 sequences were measured neither by vLLM's Rust frontend" in found.text
    assert "the engine's log names the cause and the fix" in found.text


def test_a_page_of_another_program_says_nothing_about_the_frontend() -> None:
    with page("node_load1 0.5\n") as server:
        assert check(VLLM, server, RUST) == check(VLLM, NOWHERE, RUST)


def test_a_hub_without_a_port_is_not_asked() -> None:
    environ = {**RUST, "COREVITAL_HTTP": "none"}
    assert "metrics are at no port (COREVITAL_HTTP=none)" in check(VLLM, NOWHERE, environ).text
    with page(ENGINE) as server:
        assert "no hub answers at no port (COREVITAL_HTTP=none)" in check(VLLM, server, environ).text


def test_metrics_are_read_from_the_hub_where_the_server_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with page(ENGINE) as server, page(OURS % 0) as hub:
        monkeypatch.setenv("COREVITAL_HTTP", hub)
        found = _metrics(server)
        assert found.status == "ok"
        assert found.text.startswith(f"{hub}/metrics: 7 requests")
        monkeypatch.setenv("COREVITAL_HTTP", NOWHERE)
        assert "has no corevital metrics" in _metrics(server).text
