"""``corevital watch`` on a page made by corevital's exposition."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from corevital_otel.cli.doctor import _metrics
from corevital_otel.cli.scrape import Page, Window
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Make = Callable[..., RequestReport]


@contextmanager
def served(models: int, running: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("serve_metrics.py")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PROMETHEUS_")}
    process = subprocess.Popen([sys.executable, str(script), str(port), str(models), str(running)], env=clean)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def at_terminal(folder: Path, *arguments: str, until: Callable[[str], bool], lines: int = 24) -> tuple[str, int]:
    """What a terminal of 80 columns got when ``until`` was true of it; Ctrl-C then; and the exit status."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 80, 0, 0))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COREVITAL_", "COLUMNS"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "corevital_otel.cli", "watch", *arguments],
        cwd=folder, env={**clean, "TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = ""
    deadline = time.monotonic() + 30
    try:
        while not until(shown):
            assert time.monotonic() < deadline, shown[-3000:]
            shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(ours, 65536).decode(errors="replace"))
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            try:
                os.read(ours, 65536)
            except OSError:  # Linux: the last writer has closed
                break
        return shown, process.wait(10)
    finally:
        process.kill()
        os.close(ours)


def test_200_sequences_at_80_columns(tmp_path: Path) -> None:
    def reported(shown: str) -> bool:
        return "last 2 s" in shown and "CPU" in shown.rpartition("last 2 s")[2]

    with served(1, 200) as (url, _):
        shown, code = at_terminal(tmp_path, "--url", url, "--every", "0.5", until=reported)
    assert code == 0, "Ctrl-C is how it ends"
    frame = shown.rpartition("http://")[2]
    lines = [line.rstrip("\r") for line in frame.split("\n")]
    assert max(len(line) for line in lines) <= 80
    (row,) = [line.split() for line in lines if line.startswith("meta-llama")]
    assert row[1:3] == ["200", "7"]
    assert 5 < float(row[3]) < 25, "about 20 a second"
    assert 250 < float(row[4]) < 1250
    assert row[-2:] == ["100%", "0.43"]
    assert "telemetry  lost 0" in frame
    (warnings,) = [line for line in lines if line.startswith("warnings")]
    assert re.fullmatch(r"warnings +guessing 0 +collapsed 0 +alarm [1-9]\d* +shifted 0 +alarmed now 5 *", warnings)


def test_many_models_leave_room_for_the_rest(tmp_path: Path) -> None:
    with served(30, 3) as (url, _):
        shown, _ = at_terminal(tmp_path, "--url", url, until=lambda shown: "CPU" in shown)
    assert "and 22 more models" in shown
    assert shown.count("adapter-") <= 16


def test_the_newest_requests_are_shown_where_the_store_is(tmp_path: Path, report: Make) -> None:
    writer = StoreWriter(tmp_path / "runs/corevital.db", 36500, 1024, Counters())
    model = "meta-llama/Llama-3.3-70B-Instruct-and-a-long-name"
    writer.put(record_of(report(request_id="chatcmpl-of-another-server"), SpanIds("2" * 32, "2" * 16)))
    writer.put(record_of(report(request_id="chatcmpl-a80331ac0ed668af", model=model), SpanIds("1" * 32, "1" * 16)))
    writer.close(10)
    with served(1, 2) as (url, _):
        shown, _ = at_terminal(tmp_path, "--url", url, until=lambda shown: "chatcmpl-a80331ac" in shown)
    assert "0.25 low" in shown
    assert "chatcmpl-of-anot" not in shown, "the store also holds what another server has served"


def test_a_server_that_goes_away_is_reported_and_the_last_reading_stays(tmp_path: Path) -> None:
    with served(1, 2) as (url, process):

        def reported(shown: str) -> bool:
            if "CPU" in shown:
                process.kill()
            return "no server answers" in shown and "meta-llama" in shown.rpartition("no server answers")[2]

        _, code = at_terminal(tmp_path, "--url", url, "--every", "0.2", until=reported)
    assert code == 0


def test_a_pipe_gets_one_reading(cli: Cli) -> None:
    with served(1, 200) as (url, _):
        done = cli("watch", "--url", url, "--every", "0.3")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "meta-llama/Llama-3.3-70B-Instruct-and-a-long-name" in done.stdout


def test_the_doctor_looks_at_the_same_page() -> None:
    with served(1, 2) as (url, _):
        check = _metrics(f"{url}/metrics")
    assert check.status == "ok"
    assert re.search(r"/metrics: [1-9]\d* requests and [1-9]\d* tokens since", check.text)


def test_no_server_is_one_line(cli: Cli) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        done = cli("watch", "--url", f"127.0.0.1:{probe.getsockname()[1]}")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("corevital: no server answers at http://127.0.0.1:")
    assert "vllm serve MODEL --logits-processor corevital" in line


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b"", "answers 404"),
        (200, b"<html>hello</html>", "has no corevital metrics"),
        (200, b"# TYPE vllm:x counter\nvllm:x_total 3\n", "has no corevital metrics"),
        (200, b"corevital_x{ 3\n", "cannot be read"),
        (200, b"\xff\xfe\x00", "has no corevital metrics"),
    ],
)
def test_another_kind_of_server_is_one_line(status: int, body: bytes, expected: str, cli: Cli) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        done = cli("watch", "--url", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert expected in line
    assert "--url" in line


def histogram(at: float, counts: dict[str, float], cpu: float) -> Page:
    buckets = [({"le": bound}, count) for bound, count in counts.items()]
    cpu_time: dict[str, list[tuple[dict[str, str], float]]] = {
        "corevital_telemetry_cpu_time_seconds_total": [({}, cpu)]
    }
    return Page(at, {"h_bucket": buckets, "h_count": [({}, counts["+Inf"])], **cpu_time})


def test_a_quantile_is_of_the_window_and_interpolated() -> None:
    window = Window()
    window.add(histogram(0.0, {"1.0": 100, "2.0": 100, "+Inf": 100}, 1))
    assert window.quantile("h", 0.5) is None
    window.add(histogram(1.0, {"1.0": 100, "2.0": 110, "+Inf": 110}, 2))
    assert window.quantile("h", 0.5) == pytest.approx(1.5)
    window.add(histogram(2.0, {"1.0": 100, "2.0": 110, "+Inf": 210}, 3))
    assert window.quantile("h", 0.99) == 2.0, "beyond the last bound it is that bound"


def test_a_restarted_server_starts_a_new_window() -> None:
    window = Window()
    window.add(histogram(0.0, {"1.0": 50, "+Inf": 50}, 9))
    window.add(histogram(1.0, {"1.0": 4, "+Inf": 4}, 1))
    assert window.increase("h_count") == 0
    window.add(histogram(2.0, {"1.0": 6, "+Inf": 6}, 2))
    assert window.increase("h_count") == 2


def test_the_window_is_a_minute() -> None:
    window = Window()
    for at in range(100):
        window.add(histogram(float(at), {"1.0": at, "+Inf": at}, at))
    assert window.seconds == 60
    assert window.rate("h_count") == pytest.approx(1.0)
