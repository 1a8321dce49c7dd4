"""Output in any encoding and width, to any standard output; untrusted text cannot control the terminal."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import Health, RequestReport, Risk
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]
ESCAPES = "\x1b]0;owned\x07\x9b2J\nFAKE\u202e\u2028"
COMMAND = f"{sys.executable} -m corevital_otel.cli"


@pytest.fixture
def store(tmp_path: Path, report: Make) -> Path:
    """A store that a client has written escapes into, and somebody has edited."""
    path = tmp_path / "stored.db"
    writer = StoreWriter(path, 30, 1024, Counters())
    health = Health(repetition_loop_detected=True, loop_onset=20, loop_period=4, truncated=True)
    now = time.time_ns()
    for number, request_id in enumerate((f"chatcmpl-{ESCAPES}1", f"chatcmpl-{ESCAPES}2", "chatcmpl-plain"), 1):
        item = report(
            tokens=60, request_id=request_id, model=f"m{ESCAPES}", end_ns=now, health=health,
            risk=Risk(score=0.8, level="high", factors=(f"a{ESCAPES}",)),
        )  # fmt: skip
        writer.put(record_of(item, SpanIds(f"{number:032x}", f"{number:016x}")))
    writer.close(10)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE reports SET finish_reason = ?", (ESCAPES,))
    return path


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported everything, and forks for each command: the import takes a second."""
    script = Path(__file__).with_name("forks.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        yield one
        assert one.stdin is not None
        one.stdin.close()


Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def run(forks: subprocess.Popen[str], tmp_path: Path) -> Run:
    """Runs a command; ``out`` and ``err`` are files to write to, or None for closed streams."""

    def run(*arguments: str, encoding: str = "utf-8", **streams: str | None) -> subprocess.CompletedProcess[bytes]:
        out, err = tmp_path / "stdout", tmp_path / "stderr"
        for path in (out, err):
            path.write_bytes(b"")
        call = {"arguments": arguments, "encoding": encoding, "cwd": str(tmp_path), "in": "/dev/null",
                "out": str(out), "err": str(err), **streams}  # fmt: skip
        assert forks.stdin is not None
        assert forks.stdout is not None
        print(json.dumps(call), file=forks.stdin, flush=True)
        status = int(forks.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, out.read_bytes(), err.read_bytes())

    return run


def shell(line: str, store: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("COREVITAL_", "OTEL_"))}
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False,
        env={**clean, "COREVITAL_DB": str(store), "CV": COMMAND},
    )  # fmt: skip


def assert_clean(output: bytes) -> None:
    strange = [character for character in output.decode() if not character.isprintable() and character != "\n"]
    assert not strange, output


@pytest.mark.parametrize(
    "arguments", [["spans"], ["show", "chatcmpl-"], ["show", "plain"], ["spans", "--json"], ["show", "plain", "--json"]]
)
def test_untrusted_text_cannot_control_the_terminal(store: Path, run: Run, arguments: list[str]) -> None:
    done = run(*arguments, "--db", str(store))
    assert_clean(done.stdout + done.stderr)
    assert b"FAKE" in done.stdout + done.stderr
    assert not [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(b"FAKE")]
    if "--json" in arguments:
        assert json.loads(done.stdout)[0]["model"] == f"m{ESCAPES}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["spans", "--flag", ESCAPES],
        ["spans", "--since", ESCAPES],
        ["spans", "--db", f"/nowhere/{ESCAPES}"],
        ["show", ESCAPES],
        ["watch", "--url", f"http://{ESCAPES}:1"],
        [ESCAPES],
        ["spans", ESCAPES],
        ["calibrate", f"/nowhere{ESCAPES}", "--label", ESCAPES, "--out", "/tmp/x"],  # noqa: S108 - only named here
        ["spans", "--db", "/nowhere/\udcff"],
    ],
)
def test_failures_are_one_printable_line(store: Path, run: Run, arguments: list[str]) -> None:
    done = run(
        *arguments, *(() if "--db" in arguments or arguments[0] not in ("spans", "show") else ("--db", str(store)))
    )
    assert done.returncode in (1, 2)
    assert done.stdout == b""
    assert_clean(done.stderr)
    assert done.stderr.count(b"\n") == 1
    assert len(done.stderr) < 1200


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "gbk", "koi8-r", "ascii", "utf-8", "shift_jis", "utf-16"])
def test_charts_are_drawn_in_any_encoding(store: Path, run: Run, encoding: str) -> None:
    done = run("show", "plain", "--db", str(store), encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    text = done.stdout.decode(encoding)
    charts = text[text.index("entropy (bits)") :]
    assert "surprisal (bits)" in charts
    assert max(map(len, charts.splitlines())) <= 80, "a character is one character"


def test_the_c_locale(store: Path) -> None:
    locale = "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0"
    done = shell(f"{locale} $CV show plain && {locale} $CV show …é", store)
    assert done.returncode == 1
    assert "entropy (bits)" in done.stdout
    assert done.stderr.startswith("corevital: no request '~?' in the store")


@pytest.mark.parametrize(
    "arguments", [["spans"], ["show", "plain"], ["show", "plain", "--json"], ["--version"], ["--help"]]
)
def test_a_closed_or_full_standard_output(store: Path, run: Run, arguments: list[str]) -> None:
    whole = [*arguments, *(() if arguments[0].startswith("-") else ("--db", str(store)))]
    for closed in (
        {"out": None},
        {"in": None},
        {"err": None},
        {"in": None, "out": None, "err": None},
        {"err": "/dev/full"},
    ):
        done = run(*whole, **closed)
        assert (done.returncode, done.stderr) == (0, b""), closed
    done = run(*whole, out="/dev/full")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"corevital: standard output cannot be written (No space left on device)")
    assert run(*whole, out="/dev/full", err="/dev/full").returncode == 1


def test_a_failure_with_closed_streams_keeps_its_code(store: Path, run: Run) -> None:
    for closed in ({"out": None}, {"err": None}, {"in": None, "out": None, "err": None}, {"err": "/dev/full"}):
        assert run("show", "nothing", "--db", str(store), **closed).returncode == 1
        assert run("show", **closed).returncode == 2


def test_a_store_does_not_get_a_closed_streams_descriptor(store: Path) -> None:
    assert shell("exec $CV db prune --older-than 1000d >&- 2>&- <&-", store).returncode == 0
    assert "chatcmpl-plain" in shell("exec $CV spans", store).stdout


@pytest.mark.parametrize("command", ["spans", "show plain", "spans --json"])
def test_a_reader_that_leaves_early(store: Path, command: str) -> None:
    done = shell(f"{{ $CV {command}; echo $? >&2; }} | true", store)
    assert done.stderr.splitlines() in (["0"], ["141"])


@pytest.mark.parametrize("value", ["0", "\u00b2", "99999", "9" * 5000])
def test_invalid_sizes_are_ignored(store: Path, value: str) -> None:
    assert_runs_at_terminal(["show", "plain", "--db", str(store)], {"COLUMNS": value, "LINES": value}, (24, 80))


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (500, 60_000)])
def test_terminals_of_any_size(store: Path, size: tuple[int, int]) -> None:
    for arguments in (["spans"], ["show", "plain"]):
        assert_runs_at_terminal([*arguments, "--db", str(store)], {}, size)


def assert_runs_at_terminal(arguments: list[str], env: dict[str, str], size: tuple[int, int]) -> None:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("COREVITAL_", "OTEL_", "COLUMNS", "LINES"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "corevital_otel.cli", *arguments],
        env={**clean, "TERM": "xterm", **env}, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    output = b""
    while True:
        try:
            output += os.read(ours, 65536)
        except OSError:  # Linux: the last writer has closed
            break
    os.close(ours)
    assert process.wait(30) == 0, output
    assert b"Traceback" not in output
    assert len(output) < 200_000


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("summary", "{}"),
        ("summary", json.dumps({"gen_ai.response.time_to_first_chunk": "x", "corevital.risk.factors": 3})),
        ("summary", json.dumps({"gen_ai.request.top_p": [1], "corevital.entropy.mean": {}, "corevital.capture": None})),
        ("summary", json.dumps({"corevital.health.loop_onset": -5, "corevital.health.high_entropy_steps": "many"})),
        ("summary", '{"corevital.health.high_entropy_steps": 1e999, "gen_ai.request.seed": 1' + "0" * 400 + "}"),
        ("risk_score", "high"),
        ("risk_basis", "another"),
        ("output_tokens", "x"),
        ("created_at_utc", 5),
        ("created_at_utc", f"2026-11-30T15:00:00.000Z{ESCAPES}"),
        ("flags", '["\\u001b[2J", "x"]'),
    ],
)  # fmt: skip
def test_an_edited_row_is_shown_or_one_line(store: Path, run: Run, tmp_path: Path, column: str, value: Any) -> None:
    copy = tmp_path / "c.db"
    copy.write_bytes(store.read_bytes())
    with sqlite3.connect(copy) as connection:
        connection.execute(f"UPDATE reports SET {column} = ? WHERE request_id = 'chatcmpl-plain'", (value,))  # noqa: S608 - text of the test
    for arguments in (["spans"], ["show", "plain"], ["show", "plain", "--json"]):
        done = run(*arguments, "--db", str(copy))
        assert done.returncode in (0, 1)
        assert b"Traceback" not in done.stderr
        assert b"unexpected" not in done.stderr, done.stderr
        assert done.stderr.count(b"\n") <= 1
        assert_clean(done.stdout + done.stderr)
