"""A server that takes OTLP over HTTP, in the process of a test that sets its answers."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest


class OtlpServer(ABC):
    """Answers each request with a status, after a delay.

    Attributes:
        status: of every answer.
        delay_s: before an answer.
        asked: paths of the requests so far.
    """

    def __init__(self) -> None:
        self.status, self.delay_s = 200, 0.0
        self.asked: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.asked.append(self.path)
                time.sleep(receiver.delay_s)
                if receiver.status == 200:
                    receiver.take(body)
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @abstractmethod
    def take(self, body: bytes) -> None:
        """Keep what a request that is answered with 200 has."""

    @contextmanager
    def as_endpoint(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Self]:
        """Serve, as the endpoint of all signals."""
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{self.server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        yield self
        self.server.shutdown()
        self.server.server_close()
        thread.join()
