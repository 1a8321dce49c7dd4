"""No byte of a key, a password, a query or a fragment in any line, no matter who writes it."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corevital_otel.otlp.redact import HIDDEN, Redacting, foreign, redacted

CHILD = """
import importlib.util, json, logging, os, sys, time
from corevital import log
log.configure()
logging.basicConfig(level=logging.DEBUG)  # the libraries' lines too
from corevital.guard import guarded
from corevital_otel.counters import Counters
from corevital_otel.errors import SettingsError
from corevital_otel.metrics.instruments import INSTRUMENTS
from corevital_otel.metrics.otlp import Otlp
from corevital_otel.otlp.destination import logs_destination
from corevital_otel.spans.emitter import SpanEmitter
from corevital_otel.spans.evaluations import EvaluationLogs
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
spec = importlib.util.spec_from_file_location("reports", sys.argv[1])
reports = importlib.util.module_from_spec(spec); spec.loader.exec_module(reports)

def all_signals(counters):
    emitter = SpanEmitter(counters)
    record = emitter.record(reports.make_report())
    emitter.send(record)
    logs = EvaluationLogs(counters, emitter.resource, logs_destination())
    logs.send(record)
    metrics = Otlp(Resource.create(), counters)
    metrics.put(INSTRUMENTS["corevital.tokens"], 1, {}, Context())
    until = time.monotonic() + 3
    while not all(counters.get("corevital.telemetry.dropped", what=what) for what in ("span", "log", "metric")):
        if time.monotonic() > until or len(seen) > 2: break
        time.sleep(0.02)
    logs.stop(); emitter.shutdown(0.5); logs.shutdown(0.5); metrics.close(0.5)

class Seen(logging.Handler):
    def emit(self, record): seen.append(record)
seen = []
logging.getLogger("corevital").addHandler(Seen())

@guarded("the start")
def swallowed(error): raise error

for name, env in json.load(sys.stdin).items():
    print(f"\\n@@ {name}", file=sys.stderr, flush=True)
    os.environ.update(env); log._logged.clear(); seen.clear()
    try: all_signals(Counters())
    except SettingsError as error: swallowed(error)
    for key in env: del os.environ[key]
    print("", file=sys.stderr, flush=True)
"""
LOCAL = "http://127.0.0.1:9"
KEY = "SWORDFISH"
B64 = base64.b64encode(f"me:{KEY}".encode()).decode()


def env_of(endpoint: str = LOCAL, wire: str = "http/protobuf", headers: str = "", **more: str) -> dict[str, str]:
    base = {"OTEL_EXPORTER_OTLP_PROTOCOL": wire, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    base |= {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.5", "OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "100"}
    base |= {"OTEL_BLRP_SCHEDULE_DELAY": "50"}
    return base | ({"OTEL_EXPORTER_OTLP_HEADERS": headers} if headers else {}) | more


CASES = {
    "a line break": env_of(headers=f"authorization=Bearer%20{KEY}%0A1"),
    "a carriage return": env_of(headers=f"authorization=Bearer%20{KEY}%0D1"),
    "no latin-1": env_of(headers=f"authorization={KEY}%E2%82%AC"),
    "a leading space": env_of(headers=f"authorization=%20%0B{KEY}"),
    "a colon": env_of(headers=f"Authorization: Bearer {KEY}"),
    "a colon and padding": env_of(headers=f"Authorization: Bearer {KEY}=="),
    "a comma": env_of(headers=f"authorization=Bearer a,{KEY}"),
    "traces": env_of(OTEL_EXPORTER_OTLP_TRACES_HEADERS=f"authorization=Bearer%20{KEY}%0A1"),
    "metrics": env_of(OTEL_EXPORTER_OTLP_METRICS_HEADERS=f"Authorization: Bearer {KEY}"),
    "metrics, a line break": env_of(OTEL_EXPORTER_OTLP_METRICS_HEADERS=f"a=Bearer%20{KEY}%0A1"),
    "logs": env_of(OTEL_EXPORTER_OTLP_LOGS_HEADERS=f"authorization=Bearer%20{KEY}%0A1"),
    "logs' endpoint": env_of(OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"http://me:{KEY}@host:99999/v1/logs?k={KEY}"),
    "gRPC, logs": env_of(wire="grpc", OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"http://me:{KEY}@127.0.0.1:9?k={KEY}"),
    "gRPC, a line break": env_of(wire="grpc", headers=f"authorization=Bearer%20{KEY}%0A1"),
    "gRPC, a key": env_of(wire="grpc", headers=f"a b={KEY}"),
    "gRPC, a key of bytes": env_of(wire="grpc", headers=f"token-bin={KEY}%E2%82%AC"),
    "gRPC, reserved": env_of(wire="grpc", headers=f"grpc-timeout={KEY},:path={KEY}"),
    "a port": env_of(f"http://me:{KEY}@host:99999"),
    "gRPC, a port": env_of(f"http://me:{KEY}@host:99999", "grpc"),
    "gRPC, a name": env_of(f"http://me:{KEY}@no-such-host.invalid:4317", "grpc"),
    "gRPC, no scheme": env_of(f"me:{KEY}@no-such-host.invalid:4317", "grpc"),
    "a slash": env_of(f"http://me:p/{KEY}@127.0.0.1:9"),
    "a question mark": env_of(f"http://me:p?{KEY}@127.0.0.1:9"),
    "a hash": env_of(f"http://me:p#{KEY}@127.0.0.1:9"),
    "an at": env_of(f"http://me:p@{KEY}@127.0.0.1:9"),
    "a colon in a password": env_of(f"http://me:p:{KEY}@127.0.0.1:9"),
    "escaped": env_of(f"http://me:p%2F{KEY}@127.0.0.1:9"),
    "a bracket": env_of(f"http://me:p[{KEY}@127.0.0.1:9"),
    "a fragment": env_of(f"{LOCAL}/#{KEY}"),
    "a query": env_of(f"{LOCAL}/?token={KEY}"),
    "no scheme": env_of(f"me:{KEY}@127.0.0.1:9"),
    "another scheme": env_of(f"ftp://me:{KEY}@127.0.0.1:9"),
    "metrics' endpoint": env_of(OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"http://me:{KEY}@host:99999/v1/metrics"),
    "traces' endpoint": env_of(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://me:{KEY}@host:99999/v1/traces?k={KEY}"),
    "a proxy": env_of("http://collector.invalid:4318", HTTP_PROXY=f"http://me:{KEY}@127.0.0.1:99999"),
    "a proxy that is away": env_of("https://collector.invalid", HTTPS_PROXY=f"http://me:{KEY}@127.0.0.1:9"),
    "a certificate": env_of(
        f"https://me:{KEY}@127.0.0.1:9", headers=f"a={KEY}", OTEL_EXPORTER_OTLP_CERTIFICATE="/no/such/file"
    ),
    "a client's key": env_of(
        f"https://me:{KEY}@127.0.0.1:9", "grpc", f"a={KEY}", OTEL_EXPORTER_OTLP_CERTIFICATE="/no/such/file"
    ),
}


def logged() -> dict[str, str]:
    """What is written in each case."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "COREVITAL_")) and not name.upper().endswith("_PROXY")
    }
    reports = Path(__file__).resolve().parents[1] / "conftest.py"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(reports)],
        env=kept, input=json.dumps(CASES), capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    parts = [part.partition("\n") for part in done.stderr.split("\n@@ ")[1:]]
    return {name: text for name, _, text in parts}


def test_no_line_has_a_secret() -> None:
    found = logged()
    assert found.keys() == CASES.keys()
    leaks = [f"{name}: {line}" for name, text in found.items() for line in text.splitlines() if KEY in line]
    assert leaks == []
    silent = [name for name, text in found.items() if "corevital WARNING" not in text]
    assert silent == []
    assert "OTEL_EXPORTER_OTLP_HEADERS holds a value that cannot be sent" in found["a line break"]
    assert "a part of OTEL_EXPORTER_OTLP_HEADERS is not" in found["a colon"]
    assert "OTEL_EXPORTER_OTLP_TRACES_HEADERS holds a value" in found["traces"]
    assert "OTEL_EXPORTER_OTLP_LOGS_HEADERS holds a value" in found["logs"]
    assert "a part of OTEL_EXPORTER_OTLP_METRICS_HEADERS is not" in found["metrics"]
    assert "OTEL_EXPORTER_OTLP_HEADERS holds a value" in found["gRPC, a line break"]


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer {KEY}", f"invalid token {KEY}"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer {KEY}", f"invalid token {KEY.lower()}"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Basic%20{B64}", f"wrong password {KEY} of me"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Basic%20{B64}", f"wrong: {B64}"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,key=K3Y", "no such key 'K3Y'"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://u:p%40{KEY}@h", f"http://u:p@{KEY}@h"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://h/?a={KEY}&b=2", f"no such token {KEY}"),
        ("https_proxy", f"http://u:{KEY}@proxy", f"proxy: {KEY} is wrong"),
        ("NOTHING", "", f"Failed to parse: http://me:{KEY}@host:99999"),
        ("NOTHING", "", f"cannot connect to me:{KEY}@host:4317"),
    ],
)
def test_what_a_backend_repeats_of_a_secret_is_hidden(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, text: str
) -> None:
    monkeypatch.setenv(variable, value)
    for secret in (KEY, KEY.lower(), B64, "K3Y"):
        assert secret not in foreign(text)
    assert redacted("the plain words of an error, 1 of 2") == "the plain words of an error, 1 of 2"


def test_a_url_that_no_variable_has_is_hidden_too() -> None:
    assert KEY not in foreign(f"no route {KEY}", f"http://me:{KEY}@h")
    assert foreign("x" * 10_000).endswith("…")
    assert len(foreign("\n" * 10_000 + "x" * 10_000)) <= 400


def test_a_secret_that_a_bound_would_cut_in_half_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"a={KEY}")
    for spaces in range(16_384 - len(KEY), 16_384):
        assert KEY[:3] not in foreign(" " * spaces + KEY + " " * 100)


def test_a_long_line_is_read_in_no_time() -> None:
    start = time.monotonic()
    for text in ("a" * 2_000_000, "a:" * 200_000 + "@", "//" * 200_000 + "@"):
        redacted(text)
        foreign(text)
    assert time.monotonic() - start < 10


def test_tracebacks_have_no_secret_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"a={KEY}")
    try:
        try:
            raise ValueError(f"inner {KEY}")
        except ValueError as error:
            raise RuntimeError(f"outer {KEY}") from error
    except RuntimeError:
        record = logging.LogRecord("corevital", logging.WARNING, __file__, 1, f"a {KEY}", None, sys.exc_info())
    assert Redacting().filter(record)
    text = logging.Formatter().format(record)
    assert KEY not in text
    assert f"RuntimeError: outer {HIDDEN}" in text
