"""The line in the server's log at its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from corevital_otel import __version__
from corevital_otel.otlp.destination import destination, logs_destination, shown
from corevital_otel.otlp.variables import endpoint_of
from corevital_otel.risk.alarm import Alarm
from corevital_otel.risk.calibrated import Profile, Term
from corevital_otel.service import startup
from corevital_otel.settings import Settings, load

ENGINE = {"engine.name": "vllm", "engine.version": "0.32.0", "engine.runner": "v1", "device.type": "cpu"}


def test_it_says_what_is_measured_how_and_where_it_goes(tmp_path: Path) -> None:
    where = destination({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:secret@collector:4317/x?key=secret"})
    log_lines = startup.line(Settings(db=tmp_path / "c.db", sample_rate=0.25), "tiny", ENGINE, "numba", where)
    assert log_lines == (
        f"corevital {__version__} measures tiny: vllm 0.32.0, runner v1, kernel numba on cpu, capture on_risk, "
        f"sample rate 0.25, store {tmp_path}/c.db, spans to https://collector:4317/x by grpc, "
        "risk prior, then baseline, no profile, no alarm"
    )
    no = "store none, spans to no endpoint, risk prior, no profile, no alarm"
    assert startup.line(Settings(db=None, risk_basis="prior"), "tiny", ENGINE, "numba", None).endswith(no)


def test_it_names_what_ends_sequences_and_what_stores_text(tmp_path: Path) -> None:
    both = Settings(db=tmp_path / "c.db", stop_on="nan,loop", db_content=True)
    says = "no alarm, ends early on nan, loop, text of flagged and risky outputs in the store"
    assert startup.line(both, "tiny", ENGINE, "numba", None).endswith(says)


@pytest.mark.parametrize(
    ("good", "rate", "says"),
    [(40, 0.05, "alarm on entropy_max at a rate of 0.05"), (5, 0.05, "no alarm"), (40, 0.0, "no alarm")],
)
def test_it_names_profile_and_alarm(tmp_path: Path, good: int, rate: float, says: str) -> None:
    path = tmp_path / "p.json"
    alarm = Alarm("entropy_max", tuple(float(i) for i in range(good)))
    term = Term("entropy_max", 1.0, 1.0, 0.0, 1.0, None)
    Profile(
        terms=(term,), intercept=0.0, beta=(1.0, 1.0, 0.0), isotonic=None, alarm=alarm, label="bad", runs=50, bad=20,
        auroc=0.8,
    ).save(path)  # fmt: skip
    line = startup.line(Settings(db=None, profile=path, alarm_rate=rate), "tiny", ENGINE, "numba", None)
    assert line.endswith(f", risk calibrated, profile {path}, {says}")


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "sample rate 1"),
        ({"OTEL_TRACES_SAMPLER": "Always_Off"}, "sampler always_off"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, "sampler traceidratio 0.25"),
        ({"OTEL_TRACES_SAMPLER": "xray"}, "sampler parentbased_always_on"),
        ({"OTEL_TRACES_SAMPLER": "xray", "COREVITAL_SAMPLE_RATE": "0.5"},
         "sample rate 0.5 (overrides OTEL_TRACES_SAMPLER)"),
    ],
)  # fmt: skip
def test_it_says_what_draws_requests(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str) -> None:
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "COREVITAL_SAMPLE_RATE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert f", {says}, store " in startup.line(load(), "tiny", ENGINE, "numba", None)


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
def test_a_signal_is_sent_if_otlp_is_listed_and_none_is_not(value: str) -> None:
    where = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}
    spans = {"OTEL_TRACES_EXPORTER": value, **where}
    assert destination(spans) is None
    assert endpoint_of(spans, "TRACES") is None
    assert destination(spans, "http://engine:4317") is None, "where the engine's own tracing sends spans"
    assert endpoint_of(spans, "METRICS") == "http://collector:4317", "the other signal is not concerned"
    metrics = {"OTEL_METRICS_EXPORTER": value, **where}
    assert endpoint_of(metrics, "METRICS") is None
    assert destination(metrics) is not None
    logs = {"OTEL_LOGS_EXPORTER": value, **where}
    assert logs_destination(logs) is None
    assert destination(logs) is not None


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
