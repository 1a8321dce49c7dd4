"""Where spans and log records go by the ``OTEL_*`` variables, and how an endpoint is shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from corevital.text import printable
from corevital_otel.otlp.variables import Signal, endpoint_of, given, is_sent, protocol_in, protocol_of

_HIDDEN: Final = "***"
_SHOWN: Final = 200
"""Characters that are shown of an endpoint."""
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_NO_HOST: Final = re.compile(r"[0-9]*")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a signal goes.

    Attributes:
        endpoint: as it was given, for people to read: without credentials.
        protocol: one of :data:`corevital_otel.otlp.variables.PROTOCOLS`.
        url: what the exporter is given: for HTTP with the signal's path.
        insecure: True for gRPC without TLS whatever the URL's scheme; None: by the scheme and ``OTEL_*``.
    """

    endpoint: str
    protocol: str
    url: str
    insecure: bool | None = None


def destination(env: Mapping[str, str] | None = None, engine_endpoint: str | None = None) -> Destination | None:
    """Where spans go, or None if nowhere.

    Args:
        env: environment variables, those of the process by default.
        engine_endpoint: where the engine's own tracing sends spans. An engine may write it over
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
        wire = protocol_in(env, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") if from_engine else protocol_of(env, "TRACES")
        return Destination(shown(traces), wire, traces, _plain(traces) if from_engine and wire == "grpc" else None)
    if base:
        return _at_base(env, "TRACES", base)
    if engine_endpoint:
        wire = protocol_in(env, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        insecure = _plain(engine_endpoint) if wire == "grpc" else None
        return Destination(shown(engine_endpoint), wire, engine_endpoint, insecure)
    return None


def logs_destination(env: Mapping[str, str] | None = None) -> Destination | None:
    """Where log records go, or None if nowhere: as for spans, but for the engine's endpoint, which takes only those.

    Raises:
        SettingsError: the protocol is neither ``grpc`` nor ``http/protobuf``.
    """
    env = os.environ if env is None else env
    endpoint = endpoint_of(env, "LOGS")
    if endpoint is None:
        return None
    if given(env, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"):
        return Destination(shown(endpoint), protocol_of(env, "LOGS"), endpoint)
    return _at_base(env, "LOGS", endpoint)


def _at_base(env: Mapping[str, str], signal: Signal, base: str) -> Destination:
    """A signal's place at the endpoint of all signals."""
    wire = protocol_of(env, signal)
    url = base if wire == "grpc" else f"{base.removesuffix('/')}/v1/{signal.lower()}"
    return Destination(shown(base), wire, url)


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
    """As engines' own tracing has it: without TLS, even where the URL has no scheme."""
    return None if endpoint_url.startswith("https://") else True
