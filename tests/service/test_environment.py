"""Every value that the SDK refuses, warns of or passes over is found before the start, in one line without secrets."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corevital_otel.otlp.destination import logs_destination
from corevital_otel.otlp.sampler import choose
from corevital_otel.otlp.variables import endpoint_of, tidy
from corevital_otel.service.environment import check, notes, require
from corevital_otel.settings import SettingsError, load

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
BASE = {ENDPOINT: "http://127.0.0.1:9"}
HTTP = {**BASE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
TLS = {ENDPOINT: "https://127.0.0.1:9"}
COUNTS = ("0", "-1", "abc", "1.5", "9" * 5000, "nan", "1_0")
LIMITS = ("unset", "abc", "-1", "1.5", "9" * 5000)
SECRET = "S3CRET"
TOO_EARLY = "Cannot call collect on a MetricReader until"
"""Of an interval of about a millisecond, which may end before the SDK's reader is registered: no value is refused."""

BAD: list[tuple[str, str]] = [
    *((f"OTEL_BSP_{name}", value) for name in ("SCHEDULE_DELAY", "MAX_QUEUE_SIZE") for value in COUNTS),
    ("OTEL_BSP_EXPORT_TIMEOUT", "abc"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
    *((f"OTEL_METRIC_EXPORT_{name}", value) for name in ("INTERVAL", "TIMEOUT") for value in ("0", "-5", "x", "nan")),
    ("OTEL_METRIC_EXPORT_INTERVAL", "inf"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "1e15"),
    *((f"OTEL_{name}_LIMIT", value) for value in LIMITS for name in (
        "SPAN_ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_VALUE_LENGTH", "ATTRIBUTE_COUNT", "ATTRIBUTE_VALUE_LENGTH",
        "SPAN_EVENT_COUNT", "SPAN_LINK_COUNT", "EVENT_ATTRIBUTE_COUNT", "LINK_ATTRIBUTE_COUNT")),
    *(("OTEL_PROPAGATORS", value) for value in ("b3", "tracecontext,b3", "tracecontex", "jaeger,baggage")),
    *((f"OTEL_EXPORTER_OTLP_{signal}TIMEOUT", value) for signal in ("", "TRACES_", "METRICS_")
      for value in ("abc", "0", "-1", "nan", "inf", "10s")),
    *((f"OTEL_EXPORTER_OTLP_{signal}COMPRESSION", value) for signal in ("", "TRACES_", "METRICS_")
      for value in ("zip", "deflate ,gzip")),
    *((f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL", value) for signal in ("", "TRACES_", "METRICS_")
      for value in ("http/json", "http", "thrift")),
    *((f"OTEL_EXPORTER_OTLP_{signal}HEADERS", value) for signal in ("", "TRACES_", "METRICS_") for value in (
        f"Authorization: Bearer {SECRET}", f"authorization=Bearer a,{SECRET}", f"authorization=Bearer%20{SECRET}%0A1",
        f"={SECRET}", f'a="{SECRET}"', f"a={SECRET}\u00e9", f"k={SECRET}%FF", f"a b={SECRET}", f"a=b;{SECRET}")),
    *((f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT", value) for signal in ("", "TRACES_", "METRICS_") for value in (
        f"http://me:{SECRET}@host:99999", f"http://me:p/{SECRET}@127.0.0.1:9", "http://:4317", "http://h:abc",
        f"http://h:0/#{SECRET}", f"http://[::1?{SECRET}", f"http://h h?{SECRET}", "http://h:", "http://", "http://h\x1bx")),
    *((f"OTEL_EXPORTER_OTLP_{signal}CERTIFICATE", value) for signal in ("", "TRACES_", "METRICS_")
      for value in ("/nowhere/ca.pem", __file__, "/dev/null")),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/nowhere/key.pem"),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", __file__ + "x"),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", f"-----BEGIN PRIVATE KEY-----\n{SECRET}"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", f"-----BEGIN PRIVATE KEY-----\n{SECRET}"),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/dev/null"),
    *((f"OTEL_EXPORTER_OTLP_{signal}INSECURE", "1") for signal in ("", "TRACES_", "METRICS_")),
    ("OTEL_SDK_DISABLED", "1"),
    ("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "yes"),
    ("OTEL_RESOURCE_ATTRIBUTES", f"a=b,{SECRET}"),
    ("OTEL_RESOURCE_ATTRIBUTES", f"a={SECRET}%FF"),
    ("OTEL_RESOURCE_ATTRIBUTES", f"={SECRET}"),
    ("OTEL_RESOURCE_ATTRIBUTES", f"a={SECRET}\udcff"),
    ("OTEL_SERVICE_NAME", "\udcff"),
    ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "deltas"),
    ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "exponential"),
    ("OTEL_METRICS_EXEMPLAR_FILTER", "sometimes"),
    ("OTEL_TRACES_SAMPLER", "\udcff"),
    *((name, "nothing_such") for name in (
        "OTEL_PYTHON_CONTEXT", "OTEL_PYTHON_ID_GENERATOR", "OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER",
        "OTEL_PYTHON_EXPORTER_OTLP_GRPC_TRACES_CREDENTIAL_PROVIDER",
        "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES")),
    *((name, "(") for name in (
        "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS")),
    ("OTEL_SEMCONV_STABILITY_OPT_IN", "http dup"),
    ("OTEL_BLRP_SCHEDULE_DELAY", "0"),
    ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "4096"),
    ("OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT", "many"),
    ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://host:port"),
    ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/json"),
    ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", f"a b={SECRET}"),
    ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "soon"),
    ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", "/no/such.pem"),
    ("COREVITAL_CAPTURE", "sometimes"),
    ("COREVITAL_DB", "~nobody-of-this-name/x.db"),
    ("COREVITAL_CONFIG", "/nowhere.toml"),
]  # fmt: skip

GOOD: list[dict[str, str]] = [
    {},
    {"OTEL_BSP_SCHEDULE_DELAY": " 100 ", "OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64"},
    {"OTEL_BSP_MAX_QUEUE_SIZE": "10"},
    {"OTEL_METRIC_EXPORT_INTERVAL": "1500.5", "OTEL_METRIC_EXPORT_TIMEOUT": "100"},
    {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1000", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "0"},
    {"OTEL_PROPAGATORS": "tracecontext, baggage"},
    {"OTEL_PROPAGATORS": "none"},
    {"OTEL_EXPORTER_OTLP_TIMEOUT": "2.5", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "1"},
    {"OTEL_EXPORTER_OTLP_COMPRESSION": "GZIP"},
    {"OTEL_EXPORTER_OTLP_COMPRESSION": "none"},
    {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "none"},
    {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20a2V5OnZhbHVl==,x-b= c d ,"},
    {"OTEL_EXPORTER_OTLP_INSECURE": " True "},
    {"OTEL_RESOURCE_ATTRIBUTES": "service.name=x,a=%C3%A9,", "OTEL_SERVICE_NAME": "\u00e9"},
    {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "Delta"},
    {"OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram"},
    {"OTEL_METRICS_EXEMPLAR_FILTER": "ALWAYS_ON"},
    {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"},
    {"OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "health,^/v1/models$"},
    {"OTEL_SEMCONV_STABILITY_OPT_IN": "HTTP/dup, database"},
    {"OTEL_SDK_DISABLED": "TRUE"},
    {"OTEL_TRACES_EXPORTER": "otlp,console", "OTEL_METRICS_EXPORTER": "NONE"},
    {"OTEL_BLRP_SCHEDULE_DELAY": "1", "OTEL_BLRP_MAX_QUEUE_SIZE": "10", "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "3"},
    {"OTEL_LOGS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/json"},
    {"OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES": "unavailable, ABORTED"},
]  # fmt: skip
NAMES = sorted({name for name, _ in BAD if name.startswith("OTEL_") and name != ENDPOINT})


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = dict(os.environ)
    for name in before:
        if name.startswith(("OTEL_", "COREVITAL_")) and name != "COREVITAL_RAISE":
            del os.environ[name]
    yield
    os.environ.clear()  # `tidy` may have removed variables and set others
    os.environ.update(before)


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Builds all that reads variables, as a server does; returns what was raised or logged."""
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.sdk.trace import SpanLimits, sampling
    from opentelemetry.util import http

    from corevital_otel.counters import Counters
    from corevital_otel.metrics.otlp import Otlp
    from corevital_otel.spans.emitter import SpanEmitter
    from corevital_otel.spans.evaluations import EvaluationLogs

    log_lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: log_lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("opentelemetry", "corevital")]  # ours stands for the exporters'
    for logger in loggers:
        logger.addHandler(handler)

    def build() -> list[str]:
        made: list[Any] = []
        log_lines.clear()
        try:
            SpanLimits()
            propagate._load_propagators()  # as at its import
            context._load_runtime_context()
            sampling._get_from_env_or_default()
            trace.get_tracer_provider()
            metrics.get_meter_provider()
            emitter = SpanEmitter(Counters())
            made.append(lambda: emitter.shutdown(0.1))
            if endpoint_of(os.environ, "METRICS") is not None:
                output = Otlp(emitter.resource, Counters())
                made.append(lambda: output.close(0.01))
            if (where := logs_destination()) is not None:
                logs = EvaluationLogs(Counters(), emitter.resource, where)
                made.append(lambda: logs.shutdown(0.1))
            http.get_excluded_urls("FASTAPI")
            for what in ("SERVER_REQUEST", "SERVER_RESPONSE", "SANITIZE_FIELDS"):
                found = http.get_custom_headers(f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_{what}")
                http.SanitizeValue(found).sanitize_header_value("x", "y")
        except Exception as error:
            log_lines.append(repr(error))
        found = [line for line in log_lines if not line.startswith(TOO_EARLY)]
        for close in made:
            close()
        return found

    yield build
    for logger in loggers:
        logger.removeHandler(handler)


def ids(value: Any) -> str | None:
    return repr(value)[:40] if isinstance(value, str) else None


@pytest.mark.parametrize("base", [BASE, HTTP], ids=["grpc", "http"])
@pytest.mark.parametrize(("name", "value"), BAD, ids=ids)
def test_a_wrong_value_is_found_and_never_shown_where_it_may_be_secret(
    base: dict[str, str], name: str, value: str
) -> None:
    if base is HTTP and "GRPC" in name:
        return
    found = check({**base, name: value})
    assert [problem.name for problem in found] == [name]
    (problem,) = found
    assert problem.text.startswith(name)
    assert problem.text.isprintable()
    assert len(problem.text) < 400 or name == "COREVITAL_CONFIG"
    assert SECRET not in problem.text


@pytest.mark.parametrize("base", [BASE, HTTP, TLS], ids=["grpc", "http", "tls"])
@pytest.mark.parametrize("env", GOOD, ids=lambda env: ",".join(env)[:60])
def test_neither_we_nor_the_sdk_refuse_a_right_value(
    base: dict[str, str], env: dict[str, str], sdk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {**base, **env}
    assert check(whole) == []
    for name, value in whole.items():
        monkeypatch.setenv(name, value)
    tidy()
    assert check(os.environ) == []
    assert sdk() == []


@pytest.mark.parametrize("base", [BASE, HTTP, TLS], ids=["grpc", "http", "tls"])
@pytest.mark.parametrize("name", NAMES)
def test_what_the_sdk_refuses_is_found(
    base: dict[str, str], name: str, sdk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("abc", "0", "-1", "1.5", "nan", "(", "a,b", "\u00e9", "none", "1e400", "/nowhere", ",", "a=b=c"):
        for variable, text in {**base, name: value}.items():
            monkeypatch.setenv(variable, text)
        tidy()
        if refused := sdk():
            warned = name == "OTEL_TRACES_SAMPLER" and choose(load()).unsupported
            assert warned or name in [problem.name for problem in check()], (value, refused)


@pytest.mark.parametrize("base", [BASE, HTTP], ids=["grpc", "http"])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_variable_is_an_unset_one(
    base: dict[str, str], name: str, sdk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("", "  "):
        assert check({**base, name: value}) == []
        for variable, text in {**base, name: value}.items():
            monkeypatch.setenv(variable, text)
        tidy()
        assert name not in os.environ
        assert sdk() == []


def test_without_an_endpoint_only_what_the_sdk_raises_on_is_checked() -> None:
    assert check({"OTEL_BSP_SCHEDULE_DELAY": "0", "OTEL_EXPORTER_OTLP_PROTOCOL": "x"}) == []
    assert [problem.name for problem in check({"OTEL_SPAN_EVENT_COUNT_LIMIT": "x"})] == ["OTEL_SPAN_EVENT_COUNT_LIMIT"]
    (found,) = check({"OTEL_BSP_SCHEDULE_DELAY": "0"}, engine_endpoint="http://127.0.0.1:9")
    assert found.name == "OTEL_BSP_SCHEDULE_DELAY", "spans go where the engine's own do"


@pytest.mark.parametrize("argument", ["2", "-0.1", "nan", "half"])
def test_the_argument_of_a_ratio_is_checked_and_that_of_another_sampler_is_not(argument: str) -> None:
    (problem,) = check({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": argument})
    assert problem.text == "OTEL_TRACES_SAMPLER_ARG is not allowed: use a number from 0 to 1"
    assert check({"OTEL_TRACES_SAMPLER": "always_on", "OTEL_TRACES_SAMPLER_ARG": argument}) == []
    assert check({"OTEL_TRACES_SAMPLER": "jaeger_remote", "OTEL_TRACES_SAMPLER_ARG": "endpoint=http://x"}) == []


def test_a_sampler_that_is_not_supported_is_one_warning_and_the_start_goes_on() -> None:
    code = "from corevital_otel.service.startup import prepare; prepare(); print(prepare().enabled)"
    env = {**os.environ, "OTEL_TRACES_SAMPLER": "xray"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    (line,) = done.stderr.splitlines()
    assert "OTEL_TRACES_SAMPLER='xray' is not supported, so parentbased_always_on applies: use one of" in line
    env["COREVITAL_SAMPLE_RATE"] = "1"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stderr == "", "the rate overrides it"


def test_what_is_disabled_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check({"COREVITAL_ENABLED": "0", "OTEL_SPAN_EVENT_COUNT_LIMIT": "x"}) == []
    assert len(check({"COREVITAL_ENABLED": "0", "COREVITAL_CAPTURE": "x", "OTEL_SPAN_EVENT_COUNT_LIMIT": "x"})) == 2
    off = {"OTEL_TRACES_EXPORTER": "NONE", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": " None"}
    assert check({**BASE, **off, "OTEL_BSP_SCHEDULE_DELAY": "0", "OTEL_EXPORTER_OTLP_PROTOCOL": "x"}) == []
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "x")
    with pytest.raises(SettingsError, match=r"^OTEL_SPAN_EVENT_COUNT_LIMIT='x' is not allowed"):
        require()
    monkeypatch.setenv("COREVITAL_ENABLED", "0")
    assert not require().enabled


def test_all_problems_are_found_at_once() -> None:
    env = {**BASE, "OTEL_SPAN_LINK_COUNT_LIMIT": "x", "OTEL_BSP_SCHEDULE_DELAY": "0", "COREVITAL_SAMPLE_RATE": "2",
           "COREVITAL_CAPTURE": "x"}  # fmt: skip
    assert {problem.name for problem in check(env)} == env.keys() - BASE.keys()


def test_another_exporter_is_one_line_where_there_is_an_endpoint() -> None:
    env = {"OTEL_TRACES_EXPORTER": "Zipkin", "OTEL_METRICS_EXPORTER": "prometheus", "OTEL_LOGS_EXPORTER": "console"}
    first, second, third = notes({**BASE, **env})
    assert first.startswith("OTEL_TRACES_EXPORTER=zipkin does not list otlp, so no spans are sent")
    assert second.startswith("OTEL_METRICS_EXPORTER=prometheus does not list otlp, so no metrics are sent")
    assert third.startswith("OTEL_LOGS_EXPORTER=console does not list otlp, so no log records are sent")
    assert notes(env) == notes(BASE) == notes({**BASE, "OTEL_TRACES_EXPORTER": "none"}) == []


def test_a_variable_that_a_signal_s_own_overrides_is_checked_for_the_other_signal_alone() -> None:
    env = {ENDPOINT: "tempo:4317", "OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"}
    metrics = {
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://prometheus:9090/api/v1/otlp/v1/metrics",
        "OTEL_LOGS_EXPORTER": "none",
    }
    assert [problem.name for problem in check({**env, **metrics})] == ["OTEL_EXPORTER_OTLP_COMPRESSION"]
    assert check({**env, **metrics, "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip"}) == []
    assert ENDPOINT in [problem.name for problem in check({**env, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})]


def test_a_propagator_that_is_not_installed_is_named_with_its_package() -> None:
    (problem,) = check({"OTEL_PROPAGATORS": "tracecontext,b3"})
    assert "'b3' is not installed: pip install opentelemetry-propagator-b3" in problem.text


def test_certificates_and_keys_are_read(tmp_path: Path) -> None:
    pem = certificate(tmp_path, "a")
    assert check({**TLS, "OTEL_EXPORTER_OTLP_CERTIFICATE": str(pem[0])}) == []
    pair = {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(pem[0]), "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(pem[1])}
    assert check({**TLS, **pair}) == []
    other = {**pair, "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(certificate(tmp_path, "b")[1])}
    (problem,) = check({**TLS, **other})
    assert "does not match OTEL_EXPORTER_OTLP_CLIENT_KEY" in problem.text
    folder = {**TLS, "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path)}
    assert check({**folder, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}) == []
    assert check(folder), "gRPC reads no folder"
    pem[0].write_bytes(pem[0].read_bytes()[:200])
    assert [problem.name for problem in check({**TLS, "OTEL_EXPORTER_OTLP_CERTIFICATE": str(pem[0])})]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    chain, secret = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return chain, secret


def test_the_check_does_not_import_the_sdk() -> None:
    code = (
        "import sys; from corevital_otel.service.environment import check; "
        "check({'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://h:1', 'OTEL_PROPAGATORS': 'tracecontext,b3', "
        "'OTEL_PYTHON_CONTEXT': 'contextvars_context', 'OTEL_PYTHON_ID_GENERATOR': 'random'}); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_emitter_takes_empty_variables_for_unset_ones() -> None:
    from corevital_otel.counters import Counters
    from corevital_otel.spans.emitter import SpanEmitter

    os.environ |= {**BASE, **dict.fromkeys(NAMES, "")}
    SpanEmitter(Counters()).shutdown(0.1)


def test_the_engines_own_endpoint_is_checked_by_the_protocol_it_is_sent_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only OTEL_EXPORTER_OTLP_TRACES_PROTOCOL counts for it, which vLLM reads too."""
    tracing = "http://127.0.0.1:4317"
    over_grpc = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "deflate"}
    assert [problem.name for problem in check(over_grpc, tracing)] == ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"]
    assert check({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, tracing) == []
