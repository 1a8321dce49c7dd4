"""Checks every ``OTEL_*`` and ``COREVITAL_*`` variable, before the start and without importing the SDK.

The SDK rejects some wrong values at its import, others when it makes an exporter, and ignores the rest. Here all are
found at once: :func:`require` stops a start, and `corevital doctor` lists what :func:`check` finds.

An empty variable is an unset one, by the OpenTelemetry specification. The SDK does not always agree:
:func:`corevital_otel.otlp.variables.tidy` removes such variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from corevital.text import printable
from corevital_otel.errors import SettingsError
from corevital_otel.otlp import rules
from corevital_otel.otlp.destination import destination
from corevital_otel.otlp.variables import Signal, endpoint_of, exporters, given, is_sent, protocol_of
from corevital_otel.settings import Settings, load, problems

__all__ = ["Problem", "at_import", "check", "notes", "require"]

_SIGNALS: Final[Mapping[Signal, str]] = {"TRACES": "spans", "METRICS": "metrics", "LOGS": "log records"}
_AS_OTLP: Final = {f"OTEL_{signal}_EXPORTER": "otlp" for signal in _SIGNALS}
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
    """The settings, if they and the ``OTEL_*`` variables are right.

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
    found = [Problem(name, text) for name, text in problems(env)]
    if not found and not load(env).enabled:
        return []
    return found + _otel(env, engine_endpoint)


def at_import(env: Mapping[str, str] | None = None) -> list[Problem]:
    """Problems that raise a traceback as soon as OpenTelemetry is imported."""
    env = os.environ if env is None else env
    return [Problem(name, text) for name in rules.AT_IMPORT for _, text in _wrong(env, name, rules.ALWAYS[name])]


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


def _otel(env: Mapping[str, str], engine_endpoint: str | None) -> list[Problem]:
    found = dict(_found(env, engine_endpoint))  # a variable once, though all signals read it
    return [Problem(name, text) for name, text in found.items()]


def _found(env: Mapping[str, str], engine_endpoint: str | None) -> Iterator[tuple[str, str]]:
    for name, rule in rules.ALWAYS.items():
        yield from _wrong(env, name, rule)
    for name, text in rules.sampler_argument(env):
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
        for name, rule in rules.of_signal(signal, wire).items():
            own = name.replace("OTEL_EXPORTER_OTLP_", f"OTEL_EXPORTER_OTLP_{signal}_")
            if own == name or given(env, own) is None:  # else the signal's own takes precedence
                yield from _wrong(env, name, rule)
        for name, text in rules.together(env, signal):
            yield name, f"{name} is not allowed: {text}"


def _wrong(env: Mapping[str, str], name: str, rule: rules.Rule) -> Iterator[tuple[str, str]]:
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
