"""The command line as a user meets it: real processes, their output and exit codes."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import Health, RequestReport, Risk
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("COREVITAL_", "OTEL_", "VLLM_"))
        }
        command = [sys.executable, "-m", "corevital_otel.cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env={**clean, **env}, capture_output=True, text=True, timeout=180, check=False
        )

    return run


@pytest.fixture
def filled(tmp_path: Path, report: Make) -> Path:
    path = tmp_path / "runs/corevital.db"
    writer = StoreWriter(path, 30, 1024, Counters())
    looping = Health(repetition_loop_detected=True, loop_onset=20, loop_period=4, truncated=True)
    now = time.time_ns()
    reports = [
        report(tokens=60, request_id="chatcmpl-loop", health=looping, end_ns=now, risk=Risk(score=0.8, level="high")),
        report(request_id="chatcmpl-two", end_ns=now, series=None, capture="on_risk"),
        report(request_id="chatcmpl-two", sequence=1, end_ns=now),
    ]
    for number, item in enumerate(reports, 1):
        writer.put(record_of(item, SpanIds(f"{number:032x}", f"{number:016x}")))
    writer.close(10)
    return path


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *expected: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("corevital: ")
    for text in expected:
        assert text in done.stderr


def test_help_is_quick(cli: Cli) -> None:
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = cli("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # its own time, so that other work on the machine does not count
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
    for command in ("demo", "doctor", "spans", "show"):
        assert command in done.stdout
    assert min(times) < 0.5


def test_spans_lists_newest_first_and_filters(cli: Cli, filled: Path) -> None:
    done = cli("spans")
    assert done.returncode == 0
    assert [line.split()[2] for line in done.stdout.splitlines()[1:]] == [
        "chatcmpl-two",
        "chatcmpl-two",
        "chatcmpl-loop",
    ]
    assert "0.80 high" in done.stdout
    for arguments in (["--risk-above", "0.5"], ["--flag", "repetition_loop_detected"], ["--flag", "loop"]):
        rows = json.loads(cli("spans", "--json", "--since", "1h", *arguments).stdout)
        assert [row["request_id"] for row in rows] == ["chatcmpl-loop"]
        assert rows[0]["flags"] == ["repetition_loop_detected", "truncated"]
        assert rows[0]["summary"]["corevital.entropy.mean"] == 0.5
    assert json.loads(cli("spans", "--json", "--model", "other").stdout) == []
    assert cli("spans", "--model", "other").stdout == "no requests match\n"


def test_output_into_a_pipe_has_no_padding(cli: Cli, filled: Path) -> None:
    for arguments in (["show", "chatcmpl-loop"], ["spans"]):
        lines = cli(*arguments).stdout.splitlines()
        assert len(lines) > 3
        assert [line for line in lines if line.endswith(" ")] == []


def test_show_draws_the_series_within_80_columns(cli: Cli, filled: Path) -> None:
    done = cli("show", "chatcmpl-l")
    assert done.stdout == cli("show", "loop").stdout, "by the client's X-Request-Id"
    assert done.returncode == 0
    for text in ("0.80 high", "repetition loop: from token 20 on, the same 4 tokens repeat", "not calibrated"):
        assert text in done.stdout
    charts = done.stdout[done.stdout.index("entropy (bits)") :]
    assert "surprisal (bits)" in charts
    assert "margin p1 - p2" in charts
    assert max(map(len, charts.splitlines())) <= 80


def test_a_sequence_that_corevital_ended_is_shown_as_that(cli: Cli, filled: Path) -> None:
    with sqlite3.connect(filled) as connection:
        connection.execute(
            "UPDATE reports SET summary = json_set(summary, '$.\"corevital.stop_reason\"', 'corevital:loop') "
            "WHERE request_id = 'chatcmpl-loop'"
        )
    connection.close()
    assert "finish: stop (corevital:loop)" in cli("show", "chatcmpl-loop").stdout
    assert "stop (corevital:loop)" in cli("spans").stdout


def test_show_prints_all_sequences_and_why_a_series_is_missing(cli: Cli, filled: Path) -> None:
    text = cli("show", "chatcmpl-two").stdout
    assert "sequence 1" in text
    assert "COREVITAL_CAPTURE=full" in text
    rows: list[dict[str, Any]] = json.loads(cli("show", "chatcmpl-two", "--json").stdout)
    assert [row["sequence"] for row in rows] == [0, 1]
    assert rows[0]["series"] is None
    assert len(rows[1]["series"]["entropy"]) == 3


def test_failures_are_one_line_with_the_fix(cli: Cli, tmp_path: Path) -> None:
    assert_one_line(cli("spans"), 1, "there is no store at runs/corevital.db")
    assert_one_line(cli("spans", COREVITAL_DB=""), 1, "COREVITAL_DB is empty")
    assert_one_line(cli("spans", COREVITAL_CAPTURE="x"), 1, "COREVITAL_CAPTURE='x' is not allowed")
    (tmp_path / "junk.db").write_bytes(b"junk" * 5000)
    assert_one_line(cli("show", "x", "--db", "junk.db"), 1, "file is not a database")


def test_unknown_and_ambiguous_ids_are_one_line(cli: Cli, filled: Path) -> None:
    assert_one_line(cli("show", "nothing"), 1, "no request 'nothing' in the store", "corevital spans")
    assert_one_line(cli("show", "chatcmpl-"), 1, "chatcmpl-loop, chatcmpl-two")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["spans", "--since", "yesterday"], "such as 1h"),
        (["spans", "--flag", "sad"], "nan_detected"),
        (["spans", "--risk-above", "7"], "from 0 to 1"),
        (["spans", "--limit", "0"], "limit"),
        (["show"], "--help"),
        (["dance"], "dance"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(cli: Cli, filled: Path, arguments: list[str], expected: str) -> None:
    assert_one_line(cli(*arguments), 2, expected)


def test_doctor_shows_the_hub_s_settings_without_its_secrets(cli: Cli) -> None:
    key, token = "0123456789abcdef", "fedcba9876543210"
    done = cli(
        "doctor",
        "--json",
        COREVITAL_HUB="tcp://hub:5557",
        COREVITAL_HUB_KEY=key,
        COREVITAL_HTTP="0.0.0.0:9464",
        COREVITAL_HTTP_TOKEN=token,
    )
    checks = {check["name"]: check["text"] for check in json.loads(done.stdout)}
    assert checks["hub"] == "tcp://hub:5557; COREVITAL_HUB_KEY is set"
    assert checks["HTTP port"] == "0.0.0.0:9464; COREVITAL_HTTP_TOKEN is set"
    assert key not in done.stdout + done.stderr
    assert token not in done.stdout + done.stderr


def test_doctor_gives_each_failure_its_fix(cli: Cli) -> None:
    done = cli(
        "doctor",
        "--json",
        "--url",
        "127.0.0.1:9",
        COREVITAL_SAMPLE_RATIO="1",
        OTEL_TRACES_SAMPLER="xray",
        VLLM_PLUGINS="others",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        COREVITAL_DB="/proc/nowhere/corevital.db",
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1
    for name, fix in (
        ("entry point", "add corevital to it"),
        ("OTLP", "start the collector"),
        ("metrics", "no server answers at http://127.0.0.1:9/metrics"),
        ("store", "set COREVITAL_DB elsewhere"),
    ):
        assert checks[name]["status"] == "fail"
        assert fix in checks[name]["text"]
    assert checks["settings"]["status"] == "warn"
    assert "did you mean COREVITAL_SAMPLE_RATE?" in checks["settings"]["text"]
    assert "OTEL_TRACES_SAMPLER='xray' is not supported" in checks["settings"]["text"]
    assert list(checks)[-1] == "model runner", "the slow check comes last"
