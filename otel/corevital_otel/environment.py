"""Checks every ``OTEL_*`` and ``COREVITAL_*`` variable, before the start and without importing the SDK.

The SDK finds some wrong values when it is imported, others when an exporter is made, and passes over the rest. Here
all are found at once: :func:`require` stops a start, and `corevital doctor` lists what :func:`check` finds.

An empty variable is an unset one, as the OpenTelemetry specification has it. The SDK does not always agree:
:func:`tidy` removes such variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final

from corevital.text import printable
from corevital_otel import otel_values as values
from corevital_otel.destination import Signal, destination, endpoint_of, exporters, given, is_sent, protocol_of
from corevital_otel.errors import SettingsError
from corevital_otel.settings import Settings, faults, load

__all__ = ["Problem", "at_import", "check", "notes", "require", "tidy"]

_SIGNALS: Final[Mapping[Signal, str]] = {"TRACES": "spans", "METRICS": "metrics"}
_COMPRESSION: Final = "OTEL_EXPORTER_OTLP_{}COMPRESSION"
_AS_OTLP: Final = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "otlp"}
_TEXT: Final = 60
"""Characters that are shown of a value."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A variable whose value cannot be used.

    Attributes:
        name: the variable.
        text: one line: the variable, its value unless that may be secret, and what is allowed.
    """

    name: str
    text: str


def require(env: Mapping[str, str] | None = None, engine_endpoint: str | None = None) -> Settings:
    """The settings, if nothing is wrong with them and the ``OTEL_*`` variables.

    Args:
        env: ``OTEL_*`` variables, those of the process by default; settings are always the process's.
        engine_endpoint: where the engine's own tracing sends spans; ours go there if no variable names an endpoint.

    Raises:
        SettingsError: the first problem.
    """
    settings = load()
    if settings.enabled and (found := _otel(os.environ if env is None else env, engine_endpoint)):
        raise SettingsError(found[0].text)
    return settings


def check(env: Mapping[str, str] | None = None, engine_endpoint: str | None = None) -> list[Problem]:
    """All problems, those of the settings first. Never raises.

    With ``COREVITAL_ENABLED=0`` only the settings are checked. What exporters read is checked for the signals that are
    sent somewhere.

    Args:
        env: environment variables, those of the process by default.
        engine_endpoint: as for :func:`require`.
    """
    env = os.environ if env is None else env
    found = [Problem(name, text) for name, text in faults(env)]
    if not found and not load(env).enabled:
        return []
    return found + _otel(env, engine_endpoint)


def at_import(env: Mapping[str, str] | None = None) -> list[Problem]:
    """Problems that end in a traceback as soon as OpenTelemetry is imported, whatever it is imported for."""
    env = os.environ if env is None else env
    rules = ((name, values.ALWAYS[name]) for name in values.AT_IMPORT)
    return [Problem(name, text) for name, rule in rules for _, text in _wrong(env, name, rule)]


def notes(env: Mapping[str, str] | None = None) -> list[str]:
    """One line for each signal that has an endpoint and is not sent because its exporter is not ours."""
    env = os.environ if env is None else env
    lines = []
    for signal, what in _SIGNALS.items():
        listed = exporters(env, signal)
        if "none" not in listed and not is_sent(env, signal) and endpoint_of({**env, **_AS_OTLP}, signal):
            names = printable(",".join(listed), _TEXT)
            lines.append(
                f"OTEL_{signal}_EXPORTER={names} does not list otlp, so no {what} are sent: add otlp, or set none"
            )
    return lines


def tidy(env: MutableMapping[str, str] | None = None) -> None:
    """Rewrite ``OTEL_*`` variables in place so that the SDK reads them as the specification does.

    Removes empty ones and the white space around values; writes names in lower case where the SDK compares them so;
    removes empty parts of lists; and the compression ``none``, which the SDK's gRPC exporter refuses.
    """
    env = os.environ if env is None else env
    for name in [name for name in env if name.startswith("OTEL_")]:
        value = env[name].strip()
        if name in values.LOWER:
            value = value.lower()
        if name in values.LISTS:
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


def _otel(env: Mapping[str, str], engine_endpoint: str | None) -> list[Problem]:
    found = dict(_found(env, engine_endpoint))  # a variable once, though both signals read it
    return [Problem(name, text) for name, text in found.items()]


def _found(env: Mapping[str, str], engine_endpoint: str | None) -> Iterator[tuple[str, str]]:
    for name, rule in values.ALWAYS.items():
        yield from _wrong(env, name, rule)
    for name, text in values.sampler_argument(env):
        yield name, f"{name} is not allowed: {text}"
    for signal in _SIGNALS:
        tracing = engine_endpoint if signal == "TRACES" and is_sent(env, signal) else None
        if not endpoint_of(env, signal) and not tracing:
            continue
        try:
            where = destination(env, engine_endpoint) if signal == "TRACES" else None
            wire = where.protocol if where is not None else protocol_of(env, signal)
        except SettingsError as error:
            yield str(error).partition("=")[0], str(error)
            continue
        for name, rule in values.of_signal(signal, wire).items():
            own = name.replace("OTEL_EXPORTER_OTLP_", f"OTEL_EXPORTER_OTLP_{signal}_")
            if own == name or given(env, own) is None:  # else the signal's own takes precedence
                yield from _wrong(env, name, rule)
        for name, text in values.together(env, signal):
            yield name, f"{name} is not allowed: {text}"


def _wrong(env: Mapping[str, str], name: str, rule: values.Rule) -> Iterator[tuple[str, str]]:
    value = given(env, name)
    if value is None:
        return
    try:
        value.encode()
        allowed = rule.wrong(value)
    except UnicodeEncodeError:
        yield name, f"{name} is not UTF-8: write it in UTF-8"
        return
    if allowed is not None:
        what = rule.show(value)
        shown = "" if what is None else f"={printable(repr(what), _TEXT)}"
        yield name, f"{name}{shown} is not allowed: {allowed}"
