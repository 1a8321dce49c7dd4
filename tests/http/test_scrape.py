"""``corevital watch`` and the doctor on the hub's port: the token goes to the hub, and to nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prometheus_client import CollectorRegistry, Counter
from tests.http.conftest import Serve

from corevital_otel.cli.scrape import ScrapeError, scrape

TOKEN = "the-right-token-123"


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("corevital_tokens", "Tokens.", registry=registry).inc(3)
    return registry


def test_a_port_without_a_token_is_read(serve: Serve, registry: CollectorRegistry) -> None:
    client = serve(registry=registry)
    assert scrape(str(client.port.address)).total("corevital_tokens_total") == 3


def test_the_token_is_that_of_the_settings(
    serve: Serve, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(serve(registry=registry, token=TOKEN).port.address)
    monkeypatch.delenv("COREVITAL_HTTP_TOKEN", raising=False)
    with pytest.raises(ScrapeError) as error:
        scrape(url)
    assert str(error.value) == (
        f"http://{url}/metrics needs a token: set COREVITAL_HTTP_TOKEN to the one that the hub has"
    )
    monkeypatch.setenv("COREVITAL_HTTP_TOKEN", "another-token")
    with pytest.raises(ScrapeError, match="does not accept COREVITAL_HTTP_TOKEN: set it") as error:
        scrape(url)
    assert "another-token" not in str(error.value)
    monkeypatch.setenv("COREVITAL_HTTP_TOKEN", TOKEN)
    assert scrape(url).total("corevital_tokens_total") == 3
    monkeypatch.setenv("COREVITAL_CAPTURE", "x")
    with pytest.raises(ScrapeError, match=r"^COREVITAL_CAPTURE='x' is not allowed"):
        scrape(url)


def test_watch_reads_the_port(serve: Serve, registry: CollectorRegistry) -> None:
    url = str(serve(registry=registry, token=TOKEN).port.address)
    done = subprocess.run(
        [sys.executable, "-m", "corevital_otel.cli", "watch", "--once", "--every", "0.2", "--url", url],
        env={**os.environ, "COREVITAL_HTTP_TOKEN": TOKEN}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"http://{url}")


@pytest.mark.parametrize("challenge", ["Bearer", 'Basic realm="corevital"', ""])
def test_another_server_gets_no_token(monkeypatch: pytest.MonkeyPatch, challenge: str) -> None:
    monkeypatch.setenv("COREVITAL_HTTP_TOKEN", TOKEN)
    seen: list[str | None] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(401)
            self.send_header("WWW-Authenticate", challenge)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(ScrapeError, match="answers 401 and has no metrics"):
            scrape(f"127.0.0.1:{server.server_port}")
        thread.join()
    assert seen == [None]
