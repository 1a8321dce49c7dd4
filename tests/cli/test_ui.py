"""``corevital ui`` as a process: it says where it is, logs no request, ends with Ctrl-C; each failure is one line."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.harness import served
from tests.harness.processes import free_port

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return served.fill(tmp_path / "corevital.db", served.traffic(5))


@contextmanager
def running(db: Path, *options: str, **env: str) -> Iterator[tuple[str, list[str]]]:
    """The page's URL, and afterwards all that was printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COREVITAL_", "OTEL_"))}
    command = [sys.executable, "-m", "corevital_otel.cli", "ui", "--db", str(db), "--port", "0", *options]
    process = subprocess.Popen(command, env=clean | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    try:
        assert process.stdout is not None
        while "http://" not in "".join(lines[-1:]):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        yield lines[-1].split("http://")[1].split()[0], lines
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
        lines.append(rest)
    assert process.returncode == 0


def test_it_serves_until_ctrl_c_and_logs_no_request(db: Path) -> None:
    with running(db) as (address, lines):
        answer = httpx.get(f"http://{address}/requests?id=secret-text", trust_env=False)
        assert answer.status_code == 200
        assert httpx.get(f"http://{address}/request?id=secret-text", trust_env=False).status_code == 404
    assert "shows" in lines[0]
    assert "secret-text" not in "".join(lines)
    assert lines[-1] == ""


def test_elsewhere_it_needs_a_token(db: Path, cli: Cli) -> None:
    done = cli("ui", "--db", str(db), "--host", "0.0.0.0", "--port", "0")  # noqa: S104 - only named here
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs COREVITAL_HTTP_TOKEN" in done.stderr
    with running(db, "--host", "0.0.0.0", COREVITAL_HTTP_TOKEN="a-secret") as (address, lines):  # noqa: S104 - only named here
        port = address.rpartition(":")[2]
        place = f"http://127.0.0.1:{port}/requests"
        assert httpx.get(place, trust_env=False).status_code == 401
        assert httpx.get(place, headers={"Authorization": "Bearer a-secret"}, trust_env=False).status_code == 200
    assert "a-secret" not in "".join(lines)


def test_a_port_in_use_is_one_line(db: Path, cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = cli("ui", "--db", str(db), "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"corevital: the page cannot open 127.0.0.1:{port} "
        "(it is in use: end the other process), or choose another with --port\n"
    )


def test_a_store_of_another_version_is_one_line(db: Path, cli: Cli) -> None:
    connection = sqlite3.connect(db)
    connection.execute("PRAGMA user_version = 2")
    connection.commit()
    connection.close()
    done = cli("ui", "--db", str(db), "--port", "0")
    assert done.returncode == 1
    assert "has schema 2" in done.stderr
    assert "corevital db migrate" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_store_that_is_not_there_yet_may_come(tmp_path: Path) -> None:
    with running(tmp_path / "later.db") as (address, lines):
        assert httpx.get(f"http://{address}/requests", trust_env=False).status_code == 404
        served.fill(tmp_path / "later.db", served.traffic(3))
        assert httpx.get(f"http://{address}/requests", trust_env=False).status_code == 200
    assert "there is no store" in lines[0]


@pytest.mark.parametrize("url", ["javascript:alert(1)//{trace_id}", "http://jaeger/trace", "http://a b/{trace_id}"])
def test_a_wrong_trace_url_is_one_line(db: Path, cli: Cli, url: str) -> None:
    done = cli("ui", "--db", str(db), "--trace-url", url)
    assert done.returncode == 2
    assert "is not the URL of a trace" in done.stderr


def test_the_missing_extra_is_one_line(db: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("corevital_otel.ui")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = command("ui", "--db", str(db))
    assert (done.status, done.error) == (1, "the page needs jinja2: pip install 'corevital[ui]'")


def test_missing_scripts_are_one_line(db: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from corevital_otel.cli import ui
    from corevital_otel.ui import pages

    monkeypatch.setattr(pages, "missing_scripts", lambda: ["htmx.min.js"])
    monkeypatch.setattr(ui, "_serve", lambda application, listener: None)
    done = command("ui", "--db", str(db), "--port", str(free_port()))
    assert done.status == 0
    assert "this installation has no htmx.min.js, so the page works without scripts" in done.error
