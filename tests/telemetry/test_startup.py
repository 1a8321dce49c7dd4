"""The line in the server's log at its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from corevital_otel import __version__, startup
from corevital_otel.otlp import destination, shown
from corevital_otel.settings import Settings

ENGINE = {"engine.name": "vllm", "engine.version": "0.32.0", "engine.runner": "v1", "device.type": "cpu"}


def test_it_says_what_is_measured_how_and_where_it_goes(tmp_path: Path) -> None:
    where = destination({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:secret@collector:4317/x?key=secret"})
    said = startup.line(Settings(db=tmp_path / "c.db", sample_rate=0.25), "tiny", ENGINE, "numba", where)
    assert said == (
        f"corevital {__version__} measures tiny: vllm 0.32.0, runner v1, kernel numba on cpu, capture on_risk, "
        f"sample rate 0.25, store {tmp_path}/c.db, spans to https://collector:4317/x by grpc"
    )
    assert startup.line(Settings(db=None), "tiny", ENGINE, "numba", None).endswith("store none, spans to no endpoint")


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://localhost:4317", "http://localhost:4317"),
        ("collector:4317", "collector:4317"),
        ("key@collector:4317", "collector:4317"),
        ("https://a:b@host/api/public/otel?token=c", "https://host/api/public/otel"),
        ("https://a:b@host/?next=http://c", "https://host/"),
        ("http://host/path@2", "http://host/path@2"),
        ("http://me:KEY@host:99999", "http://host:99999"),
        ("http://me:p@KEY@host:1/x", "http://host:1/x"),
        ("http://me:p/KEY@127.0.0.1:9", "http://***"),
        ("http://me:12/KEY@host", "http://***"),
        ("http://me:p?KEY@host", "http://***"),
        ("http://me:p#KEY@host", "http://***"),
        ("http://a@host/x?b=c@KEY", "http://***"),
        ("me:p/KEY@host", "***"),
        ("http://me:KEY", "http://me:***"),
        ("http://host/#KEY", "http://host/"),
        ("http://host\x1b[2J/\u202e", "http://host\\x1b[2J/\\u202e"),
        ("http://[::1]:4317/x", "http://[::1]:4317/x"),
        ("unix:/run/c.sock", "unix:/run/c.sock"),
    ],
)
def test_an_endpoint_is_shown_without_what_is_secret(endpoint: str, says: str) -> None:
    assert shown(endpoint) == says


@pytest.mark.parametrize("value", ["NONE", "None", "none ", " none", "console", "zipkin,Jaeger", "otlp,none"])
def test_spans_are_sent_where_otlp_is_listed_and_nothing_is_turned_off(value: str) -> None:
    env = {"OTEL_TRACES_EXPORTER": value, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}
    assert destination(env) is None


@pytest.mark.parametrize(
    ("value", "protocol"),
    [("", "grpc"), (" ", "grpc"), ("OTLP", "grpc"), ("console, otlp", "grpc"), ("otlp_proto_http", "http/protobuf")],
)
def test_an_exporter_is_read_without_regard_to_case(value: str, protocol: str) -> None:
    where = destination({"OTEL_TRACES_EXPORTER": value, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"})
    assert where is not None
    assert where.protocol == protocol


def test_white_space_and_case_of_endpoint_and_protocol_do_not_matter() -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": " http://h:1 ", "OTEL_EXPORTER_OTLP_PROTOCOL": " HTTP/Protobuf ",
           "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": " ", "OTEL_SDK_DISABLED": " "}  # fmt: skip
    where = destination(env)
    assert where is not None
    assert (where.url, where.protocol) == ("http://h:1/v1/traces", "http/protobuf")
    assert destination({**env, "OTEL_SDK_DISABLED": " True "}) is None
