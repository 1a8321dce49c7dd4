"""Where spans and metrics go by the ``OTEL_*`` variables. An empty variable is an unset one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from corevital.text import printable
from corevital_otel.errors import SettingsError

PROTOCOLS: Final = ("grpc", "http/protobuf")
Signal = Literal["TRACES", "METRICS"]

_EXPORTERS: Final = {"otlp": None, "otlp_proto_grpc": "grpc", "otlp_proto_http": "http/protobuf"}
"""Exporters that are OTLP, and the protocol of those whose name holds it."""
_HIDDEN: Final = "***"
_SHOWN: Final = 200
"""Characters that are shown of an endpoint."""
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_NO_HOST: Final = re.compile(r"[0-9]*")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where spans go.

    Attributes:
        endpoint: as it was given, for people to read: without credentials.
        protocol: one of :data:`PROTOCOLS`.
        url: what the exporter is given: for HTTP with the signal's path.
        insecure: True for gRPC without TLS whatever the URL's scheme; None: as the scheme and ``OTEL_*`` say.
    """

    endpoint: str
    protocol: str
    url: str
    insecure: bool | None = None


def destination(env: Mapping[str, str] | None = None, engine_endpoint: str | None = None) -> Destination | None:
    """Where spans go, or None if nowhere.

    Args:
        env: environment variables, those of the process by default.
        engine_endpoint: where the engine's own tracing sends spans. vLLM writes it over
            ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``; ours go there only where the user names no endpoint.

    Raises:
        SettingsError: the protocol is neither ``grpc`` nor ``http/protobuf``.
    """
    env = os.environ if env is None else env
    if not is_sent(env, "TRACES"):
        return None
    traces, base = given(env, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), given(env, "OTEL_EXPORTER_OTLP_ENDPOINT")
    if traces and not (engine_endpoint == traces and base):
        from_engine = engine_endpoint == traces
        wire = protocol_in(env, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",)) if from_engine else protocol_of(env, "TRACES")
        return Destination(shown(traces), wire, traces, _plain(traces) if from_engine and wire == "grpc" else None)
    if base:
        wire = protocol_of(env, "TRACES")
        return Destination(shown(base), wire, base if wire == "grpc" else f"{base.removesuffix('/')}/v1/traces")
    if engine_endpoint:
        wire = protocol_in(env, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",))
        insecure = _plain(engine_endpoint) if wire == "grpc" else None
        return Destination(shown(engine_endpoint), wire, engine_endpoint, insecure)
    return None


def given(env: Mapping[str, str], variable: str) -> str | None:
    """A variable's value without the white space around it, or None where it is empty or not set."""
    return env.get(variable, "").strip() or None


def exporters(env: Mapping[str, str], signal: Signal) -> tuple[str, ...]:
    """What ``OTEL_TRACES_EXPORTER`` or ``OTEL_METRICS_EXPORTER`` lists, in lower case; ``otlp`` if nothing."""
    listed = (given(env, f"OTEL_{signal}_EXPORTER") or "").split(",")
    return tuple(name for part in listed if (name := part.strip().lower())) or ("otlp",)


def is_disabled(env: Mapping[str, str]) -> bool:
    """Whether ``OTEL_SDK_DISABLED`` switches everything off."""
    return (given(env, "OTEL_SDK_DISABLED") or "").lower() == "true"


def is_sent(env: Mapping[str, str], signal: Signal) -> bool:
    """Whether a signal is sent where there is an endpoint: the SDK is not disabled, and OTLP is among its exporters.

    ``none`` anywhere in the list turns the signal off. Exporters other than OTLP are not ours.
    """
    listed = exporters(env, signal)
    return not is_disabled(env) and "none" not in listed and any(name in _EXPORTERS for name in listed)


def endpoint_of(env: Mapping[str, str], signal: Signal) -> str | None:
    """The endpoint that the variables name for a signal, as it was given; None if it is not sent."""
    if not is_sent(env, signal):
        return None
    return given(env, f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or given(env, "OTEL_EXPORTER_OTLP_ENDPOINT")


def protocol_of(env: Mapping[str, str], signal: Signal) -> str:
    """The OTLP protocol of a signal; gRPC where the variables are silent, as in the Python SDK and in vLLM.

    Raises:
        SettingsError: neither ``grpc`` nor ``http/protobuf``.
    """
    named = next((wire for name in exporters(env, signal) if (wire := _EXPORTERS.get(name))), None)
    return named or protocol_in(env, (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"))


def shown(endpoint_url: str) -> str:
    """An endpoint for people to read: without user, password, query and fragment, any of which may hold a key.

    A password may hold ``/``, ``?``, ``#`` and ``@``. Where that leaves in doubt what is the host, all is hidden.
    """
    match = _SCHEME.fullmatch(endpoint_url)
    scheme, rest = (f"{match[1]}://", match[2]) if match else ("", endpoint_url)
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    place = re.split("[?#]", rest, maxsplit=1)[0]
    if "@" in rest:
        behind = rest.rpartition("@")[2]
        if "@" not in rest[len(authority) :]:
            place = place.rpartition("@")[2]
        elif "@" in authority or ":" in authority or _NO_HOST.fullmatch(behind) is None:
            return f"{printable(scheme, _SHOWN)}{_HIDDEN}"  # a password with a slash, or a path with an @
    host, _, path = place.partition("/")
    name, colon, port = host.rpartition(":")
    if colon and not port.isdecimal() and not host.endswith("]") and not (not scheme and path):
        host = f"{name}:{_HIDDEN}"  # no port: it may be half of a password
    return printable(f"{scheme}{host}{'/' if '/' in place else ''}{path}", _SHOWN)


def _plain(endpoint_url: str) -> bool | None:
    """As vLLM has it: without TLS, even where the URL has no scheme."""
    return None if endpoint_url.startswith("https://") else True


def protocol_in(env: Mapping[str, str], variables: tuple[str, ...]) -> str:
    """The OTLP protocol by the first of these variables that is set; gRPC where none is.

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


def endpoint() -> str | None:
    """The endpoint that the ``OTEL_*`` variables name for spans, or None."""
    return endpoint_of(os.environ, "TRACES")


def protocol() -> str:
    """The OTLP protocol of spans by the ``OTEL_*`` variables.

    Raises:
        SettingsError: neither ``grpc`` nor ``http/protobuf``.
    """
    return protocol_of(os.environ, "TRACES")
