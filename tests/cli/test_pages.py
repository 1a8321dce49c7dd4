"""`watch` and the doctor's metrics check on untrusted pages: bounded in bytes and time, one line, no traceback."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from corevital_otel.cli import scrape as module
from corevital_otel.cli.doctor import _metrics
from corevital_otel.cli.scrape import NoServerError, Page, ScrapeError, Window, scrape
from corevital_otel.cli.watch import _frame

Serve = Callable[[BaseHTTPRequestHandler], None]
HOSTILE = "m\x1b]0;owned\x07\u009b2J\u202e"


@contextmanager
def server(serve: Serve) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                serve(self)
            except OSError:  # the reader has left
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def body(data: bytes, **headers: str) -> Serve:
    def serve(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return serve


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"corevital_tokens_total 1\n" * 4000)


def trickling(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"c")
        time.sleep(0.1)


def trickling_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X")
        time.sleep(0.1)


def silent(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def elsewhere(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "http://me:KEY@127.0.0.2:1/metrics\x1b")
    handler.end_headers()


def around(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "/metrics")
    handler.end_headers()


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        (endless, "is larger than 16 MiB"),
        (trickling, "does not answer completely within 1 s"),
        (trickling_headers, "does not answer completely within 1 s"),
        (silent, "does not answer completely within 1 s"),
        (elsewhere, "redirects to another server, http://127.0.0.2:1/metrics"),
        (around, "redirects too often"),
        (body(gzip.compress(bytes(1 << 20)), Content_Encoding="gzip"), "is compressed"),
        (body(b"corevital_x{a=\"\x1b[2J\xc2\x9b\" 3 x x x\n"), "cannot be read as Prometheus metrics"),
        (body(b"".join(b'corevital_x{a="%d"} 1\n' % i for i in range(60_000))), "has more than 50,000 lines"),
        (body(b"corevital_x NaN\ncorevital_y -1\ncorevital_z +Inf\ncorevital_w 1e300\n"), "has no corevital metrics"),
        (body(b'corevital_x{a="' + b"x" * 100_000 + b'"} 1\n'), "has no corevital metrics"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_unusable_page_is_one_line_in_time(serve: Serve, expected: str) -> None:
    with server(serve) as url:
        start = time.monotonic()
        with pytest.raises(ScrapeError) as error:
            scrape(url, 1.0 if "within" in expected else 20.0)
        assert time.monotonic() - start < (4 if "within" in expected else 25)
    text = str(error.value)
    assert expected in text
    assert text.isprintable()
    assert len(text) < 600
    assert "KEY" not in text


def test_a_reader_that_gave_up_leaves_no_thread_behind() -> None:
    with server(trickling) as url:
        for _ in range(3):
            with pytest.raises(ScrapeError):
                scrape(url, 0.3)
        deadline = time.monotonic() + 10
        while any(thread.name == "corevital-scrape" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_redirect_on_the_same_server_is_followed() -> None:
    def serve(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/metrics":
            handler.send_response(307)
            handler.send_header("Location", "/metrics/")
            handler.end_headers()
        else:
            body(b"corevital_x 1\n")(handler)

    with server(serve) as url:
        assert scrape(url).total("corevital_x") == 1


@pytest.mark.parametrize(
    "url",
    ["http://me:KEY@[::1", "http://me:p/KEY@127.0.0.1:9", "http://:1", "http://h:99999", "http://h:1/\x1b#KEY", ""],
)
def test_an_invalid_url_is_one_line_without_its_password(url: str) -> None:
    with pytest.raises(ScrapeError) as error:
        scrape(url, 2.0)
    assert "KEY" not in str(error.value)
    assert str(error.value).isprintable()


def test_no_server_has_its_own_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(NoServerError, match="no server answers at"):
            scrape(f"127.0.0.1:{probe.getsockname()[1]}")


def frame(*pages: Page) -> str:
    window = Window()
    for page in pages:
        window.add(page)
    from corevital_otel.cli.terminal import _Console

    screen: Console = _Console(width=80, markup=False, highlight=False, emoji=False)
    with screen.capture() as captured:
        screen.print(_frame(screen, "http://me:KEY@h:1", window, Path("/nowhere/x.db"), "trouble\x1b[2J"))
    return captured.get()


def page(text: str, at: float) -> Page:
    return Page(at, module._parse("http://h/metrics", text))


def test_odd_samples_are_left_out_of_the_view() -> None:
    text = f"""# TYPE corevital_requests_total counter
corevital_requests_total{{gen_ai_request_model="{HOSTILE}",finish_reason="{HOSTILE}",risk_level="low"}} %s
corevital_requests_total{{gen_ai_request_model="m",finish_reason="stop",risk_level="low"}} NaN
corevital_requests_total{{gen_ai_request_model="m",finish_reason="stop",risk_level="low"}} -7
corevital_requests_total{{gen_ai_request_model="m",finish_reason="stop",risk_level="low"}} %s
corevital_risk_score_bucket{{gen_ai_request_model="m",le="x"}} 1
corevital_risk_score_bucket{{gen_ai_request_model="m",le="NaN"}} 1
corevital_risk_score_bucket{{gen_ai_request_model="m"}} 1
corevital_risk_score_bucket{{gen_ai_request_model="m",le="0.5"}} %s
corevital_risk_score_bucket{{gen_ai_request_model="m",le="+Inf"}} %s
corevital_risk_score_count{{gen_ai_request_model="m"}} %s
corevital_telemetry_dropped_total{{what="{HOSTILE}",why="{HOSTILE}"}} %s
"""
    shown = frame(page(text.replace("%s", "1"), 0.0), page(text.replace("%s", "5"), 1.0))
    assert not [character for character in shown if not character.isprintable() and character != "\n"]
    assert "KEY" not in shown
    assert "0.47" in shown or "0.48" in shown, "the quantile of what can be read"


def test_many_reasons_and_models_leave_a_view() -> None:
    def lines(count: int) -> str:
        return "".join(
            f'corevital_requests_total{{gen_ai_request_model="m{i}",finish_reason="r{i}"}} {count}\n'
            for i in range(20_000)
        )

    shown = frame(page(lines(1), 0.0), page(lines(3), 1.0))
    assert "and 19992 more models" in shown
    assert "and 19992 more reasons" in shown
    assert len(shown) < 8000


def test_a_window_of_large_pages_is_bounded() -> None:
    window = Window()
    samples: list[tuple[dict[str, str], float]] = [({}, 1.0)] * 30_000
    for at in range(30):
        window.add(Page(float(at), {"corevital_x": samples}))
    assert sum(map(len, (found.samples["corevital_x"] for found in window._pages))) <= 200_000
    assert window.seconds > 0


def test_the_doctor_reports_the_same_in_one_line() -> None:
    with server(body(b"corevital_x{ 3\n")) as url:
        check = _metrics(url)
    assert check.status == "fail"
    assert "cannot be read" in check.text
