"""Where spans go by the ``OTEL_*`` variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from corevital_otel.errors import SettingsError

PROTOCOLS: Final = ("grpc", "http/protobuf")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where spans go.

    Attributes:
        endpoint: as it was given, for people to read: without credentials.
        protocol: one of :data:`PROTOCOLS`.
        url: what the exporter is told: for HTTP with the signal's path.
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
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER", "") == "none":
        return None
    traces, base = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if traces and not (engine_endpoint == traces and base):
        from_engine = engine_endpoint == traces
        wire = protocol_in(env, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",) if from_engine else _PROTOCOL_VARIABLES)
        return Destination(shown(traces), wire, traces, _plain(traces) if from_engine and wire == "grpc" else None)
    if base:
        wire = protocol_in(env, _PROTOCOL_VARIABLES)
        return Destination(shown(base), wire, base if wire == "grpc" else f"{base.removesuffix('/')}/v1/traces")
    if engine_endpoint:
        wire = protocol_in(env, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",))
        insecure = _plain(engine_endpoint) if wire == "grpc" else None
        return Destination(shown(engine_endpoint), wire, engine_endpoint, insecure)
    return None


def shown(endpoint_url: str) -> str:
    """An endpoint for people to read: without user, password and query, which may hold a key."""
    scheme, slashes, rest = endpoint_url.partition("?")[0].rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"


_PROTOCOL_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def _plain(endpoint_url: str) -> bool | None:
    """As vLLM has it: without TLS, even where the URL has no scheme."""
    return None if endpoint_url.startswith("https://") else True


def protocol_in(env: Mapping[str, str], variables: tuple[str, ...]) -> str:
    """The OTLP protocol by the first of these variables that is set; gRPC where none is.

    Raises:
        SettingsError: neither ``grpc`` nor ``http/protobuf``.
    """
    for variable in variables:
        if value := env.get(variable):
            if value not in PROTOCOLS:
                raise SettingsError(f"{variable}={value!r} is not allowed: use one of {', '.join(PROTOCOLS)}")
            return value
    return "grpc"


def endpoint() -> str | None:
    """The endpoint that the ``OTEL_*`` variables name for spans, or None."""
    env = os.environ
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER", "") == "none":
        return None
    return env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None


def protocol() -> str:
    """The OTLP protocol by the ``OTEL_*`` variables; gRPC where they are silent, as in the Python SDK and in vLLM.

    Raises:
        SettingsError: neither ``grpc`` nor ``http/protobuf``.
    """
    return protocol_in(os.environ, _PROTOCOL_VARIABLES)
