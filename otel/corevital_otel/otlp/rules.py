"""What each ``OTEL_*`` variable may hold. Does not import the SDK, which raises on some values at its import."""

from __future__ import annotations

import importlib.metadata
import math
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from corevital.text import printable
from corevital_otel.otlp.destination import shown
from corevital_otel.otlp.variables import Signal, given, whole_number

Check = Callable[[str], str | None]
"""Takes a value that is not empty; returns what is allowed, or None if the value is."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a variable may hold.

    Attributes:
        wrong: returns what is allowed if a value is not.
        show: what messages show of a value; None for nothing, where it may be secret.
    """

    wrong: Check
    show: Callable[[str], str | None] = str


def _hidden(value: str) -> None:
    return None


def _path(value: str) -> str | None:
    return None if "-----" in value else value  # the content in place of the file's name


def _one_of(*allowed: str) -> Check:
    return lambda value: None if value.lower() in allowed else f"use one of {', '.join(allowed)}"


def _whole(least: int) -> Check:
    """A whole number from ``least`` to 2,147,483,647, in ASCII digits."""

    def wrong(value: str) -> str | None:
        return f"use a whole number from {least} up" if whole_number(value, least) is None else None

    return wrong


def _number(unit: str, most: float) -> Check:
    """A number above 0; the bound keeps it within what a thread can wait."""

    def wrong(value: str) -> str | None:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        return None if 0 < number <= most else f"use a number of {unit} above 0, up to {most:,.0f}"

    return wrong


def _ratio(value: str) -> str | None:
    try:
        return None if 0 <= float(value) <= 1 else "use a number from 0 to 1"
    except ValueError:
        return "use a number from 0 to 1"


_BOOLEAN: Final = Rule(_one_of("true", "false"))
_COUNT: Final = Rule(_whole(1))
_LIMIT: Final = Rule(_whole(0))


def _registered(group: str, *more: str, several: bool = False, packages: Mapping[str, str] | None = None) -> Check:
    """The name of an installed entry point, or a list of them; one that can be loaded."""

    def wrong(value: str) -> str | None:
        known = importlib.metadata.entry_points(group=group)
        for part in value.split(",") if several else [value]:
            name = part.strip()
            if name.lower() in more or (several and not name):
                continue
            if name not in known.names:
                shown_name = printable(repr(name), 60)
                if package := (packages or {}).get(name.lower()):
                    return f"{shown_name} is not installed: pip install {package}"
                return f"{shown_name} is not installed: use one of {', '.join(sorted({*known.names, *more}))}"
            if not name.startswith(_OWN) and (reason := _unloadable(known[name])):
                return f"{printable(repr(name), 60)} cannot be loaded ({reason}): install what it needs"
        return None

    return wrong


_OWN: Final = ("tracecontext", "baggage", "otel", "contextvars_context", "random", "default_", "sdk_")
"""Of the SDK itself. Loading one would import the SDK, which has not been checked yet."""


def _unloadable(point: importlib.metadata.EntryPoint) -> str | None:
    if point.value.startswith("opentelemetry.sdk."):
        return None
    try:
        point.load()
    except Exception as error:  # a package of anyone's
        return f"{type(error).__name__}: {printable(error, 100)}"
    return None


def _regexes(value: str) -> str | None:
    try:
        re.compile("|".join(part.strip() for part in value.split(",")))
    except (re.error, RecursionError, OverflowError) as error:
        return f"use regular expressions, comma-separated ({printable(error, 80)})"
    return None


_PAIRS: Final = "use key=value pairs, comma-separated, with values percent-encoded in UTF-8"
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_METADATA_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
"""What the SDK takes, encoded or not: printable ASCII without ``"``, ``,``, ``;`` and ``\\``."""


def _resource(value: str) -> str | None:
    for item in filter(str.strip, value.split(",")):
        key, equals, text = item.partition("=")
        try:
            unquote_to_bytes(text).decode()
        except UnicodeDecodeError:
            return _PAIRS
        if not equals or not key.strip():
            return _PAIRS
    return None


def _headers(wire: str) -> Check:
    def wrong(value: str) -> str | None:
        for item in filter(str.strip, value.split(",")):
            name, equals, text = (part.strip() for part in item.partition("="))
            named = _METADATA_NAME if wire == "grpc" else _HEADER_NAME
            plain = unquote(text)
            binary = wire == "grpc" and name.lower().endswith("-bin")  # gRPC needs bytes there, and the SDK gives text
            fits = plain.isascii() and plain.isprintable()
            if not equals or not named.fullmatch(unquote(name).lower()) or not _HEADER_VALUE.fullmatch(text):
                return f"{_PAIRS}; a space is %20, a comma %2C"
            if not fits or binary:
                return "header values are printable ASCII once decoded"
        return None

    return wrong


def _endpoint(wire: str) -> Check:
    """A URL; for gRPC also what gRPC calls a target."""

    def wrong(value: str) -> str | None:
        problem = _url_problem(value, wire)
        return problem and f"the endpoint {problem}: use http://HOST:PORT or https://HOST:PORT"

    return wrong


def _url_problem(value: str, wire: str) -> str | None:  # noqa: PLR0911 - one return a problem
    if not value.isprintable() or " " in value:
        return "has white space or control characters"
    if wire == "grpc" and _TARGET.match(value):
        return None
    if wire != "grpc" and "://" not in value:
        return f"has no scheme, which {wire} needs"
    try:
        parts = urlsplit(value if "://" in value else f"//{value}")
        host = parts.hostname
    except ValueError:
        return "is not a URL"
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.netloc.endswith(":"):
        return "has no valid port"
    if wire != "grpc" and parts.scheme not in ("http", "https"):
        return "has a scheme that is neither http nor https"
    return None if host else "names no host"


_TARGET: Final = re.compile("(unix|unix-abstract|vsock|xds|ipv4|ipv6|dns):")


def _certificates(wire: str) -> Check:
    fix = "name a PEM file with certificates"

    def wrong(value: str) -> str | None:
        path = Path(value)
        try:
            if wire != "grpc" and path.is_dir():
                return None  # a folder of certificates
            if not path.is_file():
                return f"there is no such file: {fix}"
            ssl.create_default_context(cafile=path)
        except (OSError, ValueError) as error:
            return f"it cannot be read ({_reason(error)}): {fix}"
        return None

    return wrong


def _pem(word: str) -> Check:
    def wrong(value: str) -> str | None:
        try:
            if not Path(value).is_file():
                return f"there is no such file: name a PEM file with the {word.lower()}"
            with Path(value).open("rb") as file:
                head = file.read(1 << 20)
        except (OSError, ValueError) as error:
            return f"it cannot be read ({_reason(error)}): name a PEM file with the {word.lower()}"
        begins = re.search(rb"-----BEGIN [A-Z0-9 ]*" + word.encode() + rb"-----", head)
        return None if begins else f"it is not a PEM file with a {word.lower()}"

    return wrong


def _reason(error: Exception) -> str:
    return printable(getattr(error, "reason", None) or getattr(error, "strerror", None) or error, 80)


_CODES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
)  # fmt: skip


def _codes(value: str) -> str | None:
    known = all(part.strip().upper() in _CODES for part in value.split(",") if part.strip())
    return None if known else "use names of gRPC status codes, comma-separated, such as UNAVAILABLE"


def _opt_ins(value: str) -> str | None:
    fits = all(re.fullmatch("[a-z0-9_]+(/dup)?", part.strip().lower()) for part in value.split(",") if part.strip())
    return None if fits else "use names such as http or http/dup, comma-separated"


_PROPAGATORS: Final = {
    "b3": "opentelemetry-propagator-b3",
    "b3multi": "opentelemetry-propagator-b3",
    "jaeger": "opentelemetry-propagator-jaeger",
    "ottrace": "opentelemetry-propagator-ot-trace",
    "xray": "opentelemetry-propagator-aws-xray",
}


def _propagators(value: str) -> str | None:
    if "none" in map(str.strip, value.lower().split(",")):
        return None  # turns all others off
    return _registered("opentelemetry_propagator", several=True, packages=_PROPAGATORS)(value)


ALWAYS: Final[Mapping[str, Rule]] = {
    "OTEL_SDK_DISABLED": _BOOLEAN,
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": _BOOLEAN,
    **{
        f"OTEL_{name}_LIMIT": _LIMIT
        for name in (
            "ATTRIBUTE_COUNT", "ATTRIBUTE_VALUE_LENGTH", "SPAN_ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_VALUE_LENGTH",
            "SPAN_EVENT_COUNT", "SPAN_LINK_COUNT", "EVENT_ATTRIBUTE_COUNT", "LINK_ATTRIBUTE_COUNT",
            "LOGRECORD_ATTRIBUTE_COUNT", "LOGRECORD_ATTRIBUTE_VALUE_LENGTH",
        )
    },
    "OTEL_PROPAGATORS": Rule(_propagators),
    "OTEL_PYTHON_CONTEXT": Rule(_registered("opentelemetry_context")),
    "OTEL_PYTHON_ID_GENERATOR": Rule(_registered("opentelemetry_id_generator")),
    "OTEL_PYTHON_TRACER_PROVIDER": Rule(_registered("opentelemetry_tracer_provider")),
    "OTEL_PYTHON_METER_PROVIDER": Rule(_registered("opentelemetry_meter_provider")),
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": Rule(_registered("opentelemetry_resource_detector", "*", several=True)),
    "OTEL_RESOURCE_ATTRIBUTES": Rule(_resource, _hidden),
    "OTEL_SERVICE_NAME": Rule(lambda value: None),
    "OTEL_TRACES_EXPORTER": Rule(lambda value: None),
    "OTEL_METRICS_EXPORTER": Rule(lambda value: None),
    "OTEL_LOGS_EXPORTER": Rule(lambda value: None),
    "OTEL_TRACES_SAMPLER": Rule(lambda value: None),  # one that is not supported: see `otlp.sampler`
    "OTEL_SEMCONV_STABILITY_OPT_IN": Rule(_opt_ins),
    **{
        name: Rule(_regexes)
        for name in (
            "OTEL_PYTHON_EXCLUDED_URLS",
            "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS",
        )
    },
}  # fmt: skip
"""What is checked whether or not anything is sent."""

AT_IMPORT: Final = ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_PROPAGATORS", "OTEL_PYTHON_CONTEXT")
"""Those of them on which the SDK raises, or logs a traceback, when it is imported."""


def of_signal(signal: Signal, wire: str) -> dict[str, Rule]:
    """What is checked where a signal is sent by a protocol: the signal's own variables, then those of all signals."""
    exporter = {
        "ENDPOINT": Rule(_endpoint(wire), shown),
        "HEADERS": Rule(_headers(wire), _hidden),
        "TIMEOUT": Rule(_number("seconds", 1_000_000)),
        "COMPRESSION": Rule(_one_of("none", "gzip") if wire == "grpc" else _one_of("none", "gzip", "deflate")),
        "CERTIFICATE": Rule(_certificates(wire), _path),
        "CLIENT_KEY": Rule(_pem("PRIVATE KEY"), _hidden),  # some write the key itself in place of its file
        "CLIENT_CERTIFICATE": Rule(_pem("CERTIFICATE"), _path),
        "INSECURE": _BOOLEAN,
    }
    rules = {f"OTEL_EXPORTER_OTLP_{of}{name}": rule for name, rule in exporter.items() for of in (f"{signal}_", "")}
    provider = Rule(_registered("opentelemetry_otlp_credential_provider"))
    library = "GRPC" if wire == "grpc" else "HTTP"
    for of in ("", f"{signal}_"):
        rules[f"OTEL_PYTHON_EXPORTER_OTLP_{library}_{of}CREDENTIAL_PROVIDER"] = provider
    if wire == "grpc":
        rules["OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES"] = Rule(_codes)
    if (processor := _PROCESSORS.get(signal)) is not None:
        for name in ("SCHEDULE_DELAY", "EXPORT_TIMEOUT", "MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE"):
            rules[f"OTEL_{processor}_{name}"] = _COUNT
        return rules
    for name in ("INTERVAL", "TIMEOUT"):
        rules[f"OTEL_METRIC_EXPORT_{name}"] = Rule(_number("milliseconds", 1_000_000_000))
    rules["OTEL_METRICS_EXEMPLAR_FILTER"] = Rule(_one_of("always_on", "always_off", "trace_based"))
    rules["OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"] = Rule(_one_of("cumulative", "delta", "lowmemory"))
    rules["OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"] = Rule(
        _one_of("explicit_bucket_histogram", "base2_exponential_bucket_histogram")
    )
    return rules


_PROCESSORS: Final[Mapping[Signal, str]] = {"TRACES": "BSP", "LOGS": "BLRP"}
"""Of the variables for the queues of spans and log records."""
_QUEUE: Final = 2048
"""The SDK's own, where ``OTEL_BSP_MAX_QUEUE_SIZE`` or ``OTEL_BLRP_MAX_QUEUE_SIZE`` is not set."""


def sampler_argument(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """``OTEL_TRACES_SAMPLER_ARG``, if it is wrong for the sampler."""
    argument = given(env, "OTEL_TRACES_SAMPLER_ARG")
    ratio = (given(env, "OTEL_TRACES_SAMPLER") or "").lower().endswith("traceidratio")
    if argument is not None and ratio and (text := _ratio(argument)):
        yield "OTEL_TRACES_SAMPLER_ARG", text


def together(env: Mapping[str, str], signal: Signal) -> Iterator[tuple[str, str]]:
    """A signal's variables that conflict with others: their names, and what is wrong."""
    if (processor := _PROCESSORS.get(signal)) is not None:
        batch, queue = (given(env, f"OTEL_{processor}_{name}") for name in ("MAX_EXPORT_BATCH_SIZE", "MAX_QUEUE_SIZE"))
        asked = int(batch) if batch and _whole(1)(batch) is None else 0
        room = int(queue) if queue and _whole(1)(queue) is None else _QUEUE
        if asked > room:
            yield f"OTEL_{processor}_MAX_EXPORT_BATCH_SIZE", f"use at most OTEL_{processor}_MAX_QUEUE_SIZE, {room}"
    pairs = [(f"OTEL_EXPORTER_OTLP_{of}CLIENT_CERTIFICATE", f"OTEL_EXPORTER_OTLP_{of}CLIENT_KEY")
             for of in (f"{signal}_", "")]  # fmt: skip
    for certificate, key in pairs:
        chain, secret = given(env, certificate), given(env, key)
        if chain and secret and os.path.isfile(chain) and os.path.isfile(secret):
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(chain, secret, password=lambda: "")
            except (OSError, ValueError) as error:
                yield certificate, f"it does not match {key} ({_reason(error)}): name the certificate of that key"
