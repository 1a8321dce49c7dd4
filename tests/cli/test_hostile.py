"""What clients, stores and users can do to the command line: still one line or a whole table, never a traceback."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
HOSTILE = "chatcmpl-[/red]:smile:" + "x" * 300


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.fixture
def hostile(tmp_path: Path, report: Make) -> Path:
    path = tmp_path / "runs/corevital.db"
    writer = StoreWriter(path, 30, 1024, Counters())
    writer.put(
        record_of(
            report(request_id=HOSTILE, model="org/model[bold]", end_ns=time.time_ns()), SpanIds("1" * 32, "1" * 16)
        )
    )
    writer.close(10)
    return path


def test_ids_and_models_are_shown_unchanged(cli: Cli, hostile: Path) -> None:
    for arguments in (["spans"], ["show", "chatcmpl-[/"]):
        done = cli(*arguments)
        assert done.returncode == 0, done.stderr
        assert HOSTILE[:256] in done.stdout  # all that is kept, on one line
        assert "org/model[bold]" in done.stdout


def test_an_empty_store_is_not_a_failure(cli: Cli, hostile: Path) -> None:
    with sqlite3.connect(hostile) as connection:
        connection.execute("DELETE FROM reports")
    done = cli("spans")
    assert (done.returncode, done.stderr) == (0, "")
    assert "holds no requests yet" in done.stdout
    assert json.loads(cli("spans", "--json").stdout) == []


def test_a_damaged_series_is_one_line(cli: Cli, hostile: Path) -> None:
    with sqlite3.connect(hostile) as connection:
        connection.execute("UPDATE reports SET series = x'0299'")
    assert "cannot be read" in one_line(cli("show", "chatcmpl-"), 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["spans", "--since", "999999999999d"],
        ["spans", "--since", "99999d"],
        ["spans", "--since", ""],
        ["spans", "--limit", "9" * 30],
        ["spans", "--risk-above", "nan"],
        ["demo", "--port", "99999"],
        ["demo", "--requests", "1"],
    ],
)
def test_values_out_of_range_are_one_line_and_exit_2(cli: Cli, hostile: Path, arguments: list[str]) -> None:
    one_line(cli(*arguments), 2)


def test_a_path_that_the_system_refuses_is_one_line(cli: Cli, hostile: Path) -> None:
    one_line(cli("spans", "--db", "x" * 5000), 1)


@pytest.mark.parametrize(
    ("endpoint", "protocol", "expected"),
    [
        ("http://localhost:abc", "grpc", "no valid port"),
        ("http://:4317", "grpc", "names no host"),
        ("localhost:4318", "http/protobuf", "no scheme"),
        ("http://" + "x" * 300 + ":4317", "grpc", "cannot be reached"),
        ("http://127.0.0.1:9", "thrift", "is not allowed"),
    ],
)
def test_doctor_reports_what_is_wrong_with_an_endpoint(cli: Cli, endpoint: str, protocol: str, expected: str) -> None:
    done = cli("doctor", "--json", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1
    assert checks["OTLP"]["status"] == "fail"
    assert expected in checks["OTLP"]["text"]


@pytest.mark.parametrize(
    ("target", "wire", "address"),
    [
        ("https://cloud.example/api/public/otel", "http/protobuf", ("cloud.example", 443)),
        ("http://tempo/otlp", "http/protobuf", ("tempo", 80)),
        ("http://tempo", "grpc", ("tempo", 443)),
        ("tempo:4317", "grpc", ("tempo", 4317)),
    ],
)
def test_doctor_tries_the_address_that_the_exporter_would(target: str, wire: str, address: tuple[str, int]) -> None:
    from corevital_otel.cli.doctor import _address

    assert _address(target, wire) == address
