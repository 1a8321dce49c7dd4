"""The one reader of the ``OTEL_*`` variables that decide whether, where and how spans, metrics and logs are
sent.

It follows the OpenTelemetry specification for all signals alike:

- An empty variable is an unset one, and white space around a value does not count.
- ``OTEL_SDK_DISABLED=true`` turns everything off; names and protocols are compared without regard to case.
- ``OTEL_TRACES_EXPORTER``, ``OTEL_METRICS_EXPORTER`` and ``OTEL_LOGS_EXPORTER`` are lists. A signal is sent where
  ``otlp`` is listed, or the list is empty. ``none`` anywhere in the list turns it off. Other exporters, such as
  ``console``, are not ours: a signal that lists only those is not sent.
- A signal's own variable overrides the one for all signals.

It differs in two places: the default protocol is gRPC, as in the Python SDK and in engines' own tracing, and a wrong
value stops the start (:mod:`corevital_otel.otlp.rules`) instead of being ignored. Imports no SDK. The variables of the
sampler are read in :mod:`corevital_otel.otlp.sampler`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from typing import Final, Literal

from corevital.text import printable
from corevital_otel.errors import SettingsError

PROTOCOLS: Final = ("grpc", "http/protobuf")
Signal = Literal["TRACES", "METRICS", "LOGS"]

_EXPORTERS: Final = {"otlp": None, "otlp_proto_grpc": "grpc", "otlp_proto_http": "http/protobuf"}
"""Exporters that are OTLP, and the protocol of those whose name holds it."""
_COMPRESSION: Final = "OTEL_EXPORTER_OTLP_{}COMPRESSION"
_LOWER: Final = frozenset(
    ("OTEL_METRICS_EXEMPLAR_FILTER", "OTEL_TRACES_SAMPLER", "OTEL_SEMCONV_STABILITY_OPT_IN", "OTEL_SDK_DISABLED",
     "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION")
)  # fmt: skip
"""Variables whose values the SDK compares in lower case alone."""
_LISTS: Final = frozenset(
    ("OTEL_PROPAGATORS", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_PYTHON_EXCLUDED_URLS", "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS",
     "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",
     "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE",
     "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS")
)  # fmt: skip
"""Lists in which the SDK refuses an empty part, or reads it as an entry."""


def given(env: Mapping[str, str], variable: str) -> str | None:
    """A variable's value without the white space around it, or None where it is empty or not set."""
    return env.get(variable, "").strip() or None


def whole_number(text: str, least: int) -> int | None:
    """A whole number from ``least`` to 2,147,483,647, in ASCII digits; None for anything else."""
    return int(text) if re.fullmatch("[0-9]{1,10}", text) and least <= int(text) < 2**31 else None


def count(variable: str, default: int) -> int:
    """A variable of this process that holds a whole number from 1 up.

    Raises:
        SettingsError: it holds something else.
    """
    value = given(os.environ, variable)
    if value is None:
        return default
    if (number := whole_number(value, 1)) is None:
        shown_value = printable(repr(value), 60)
        raise SettingsError(f"{variable}={shown_value} is not allowed: use a whole number from 1 up")
    return number


def exporters(env: Mapping[str, str], signal: Signal) -> tuple[str, ...]:
    """What a signal's ``OTEL_…_EXPORTER`` lists, in lower case; ``otlp`` if nothing."""
    listed = (given(env, f"OTEL_{signal}_EXPORTER") or "").split(",")
    return tuple(name for part in listed if (name := part.strip().lower())) or ("otlp",)


def is_disabled(env: Mapping[str, str]) -> bool:
    """Whether ``OTEL_SDK_DISABLED`` turns everything off."""
    return (given(env, "OTEL_SDK_DISABLED") or "").lower() == "true"


def is_sent(env: Mapping[str, str], signal: Signal) -> bool:
    """Whether a signal is sent where there is an endpoint."""
    listed = exporters(env, signal)
    return not is_disabled(env) and "none" not in listed and any(name in _EXPORTERS for name in listed)


def endpoint_of(env: Mapping[str, str], signal: Signal) -> str | None:
    """The endpoint that the variables name for a signal, as it was given; None if it is not sent."""
    if not is_sent(env, signal):
        return None
    return given(env, f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or given(env, "OTEL_EXPORTER_OTLP_ENDPOINT")


def protocol_of(env: Mapping[str, str], signal: Signal) -> str:
    """The OTLP protocol of a signal; gRPC by default.

    Raises:
        SettingsError: neither ``grpc`` nor ``http/protobuf``.
    """
    named = next((wire for name in exporters(env, signal) if (wire := _EXPORTERS.get(name))), None)
    return named or protocol_in(env, f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def protocol_in(env: Mapping[str, str], *variables: str) -> str:
    """The OTLP protocol by the first of these variables that is set; gRPC by default.

    Raises:
        SettingsError: neither ``grpc`` nor ``http/protobuf``.
    """
    for variable in variables:
        if value := given(env, variable):
            if value.lower() not in PROTOCOLS:
                raise SettingsError(
                    f"{variable}={printable(repr(value), 60)} is not allowed: use one of {', '.join(PROTOCOLS)}"
                )
            return value.lower()
    return "grpc"


def tidy(env: MutableMapping[str, str] | None = None) -> None:
    """Rewrite ``OTEL_*`` variables in place so that the SDK reads them as the specification does.

    Removes empty ones and the white space around values; writes names in lower case where the SDK compares them so;
    removes empty parts of lists; and the compression ``none``, which the SDK's gRPC exporter refuses.
    """
    env = os.environ if env is None else env
    for name in [name for name in env if name.startswith("OTEL_")]:
        value = env[name].strip()
        if name in _LOWER:
            value = value.lower()
        if name in _LISTS:
            value = ",".join(part for part in map(str.strip, value.split(",")) if part)
        if not value:
            del env[name]
        elif value != env[name]:
            env[name] = value
    base = env.get(_COMPRESSION.format(""), "none")
    chosen = {signal: env.get(_COMPRESSION.format(f"{signal}_"), base) for signal in ("TRACES", "METRICS", "LOGS")}
    if "none" in map(str.lower, chosen.values()):
        env.pop(_COMPRESSION.format(""), None)
        for signal, value in chosen.items():
            env.pop(_COMPRESSION.format(f"{signal}_"), None)
            if value.lower() != "none":
                env[_COMPRESSION.format(f"{signal}_")] = value
