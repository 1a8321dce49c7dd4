"""Which sampler draws requests: ``COREVITAL_SAMPLE_RATE`` if it is set, else ``OTEL_TRACES_SAMPLER``. Imports no SDK.

The samplers are those of the OpenTelemetry specification, and ``parentbased_always_on`` is the default. Others, such as
those that packages register as entry points, are not supported: one is reported, and the default applies.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from corevital.text import printable
from corevital_otel.otlp import rules
from corevital_otel.otlp.variables import given
from corevital_otel.settings import Settings

_SAMPLER: Final = "OTEL_TRACES_SAMPLER"
_DEFAULT: Final = "parentbased_always_on"
_ROOTS: Final = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}
"""What draws a request without a caller: its share; None stands for ``OTEL_TRACES_SAMPLER_ARG``."""
_PARENT_BASED: Final = "parentbased_"
_SAMPLERS: Final = (*_ROOTS, *(f"{_PARENT_BASED}{root}" for root in _ROOTS))


@dataclass(frozen=True, slots=True)
class Choice:
    """The sampler of a server.

    Attributes:
        rate: share that is drawn, 0 to 1.
        text: for the line at the start, and for `corevital doctor`.
        by_trace_id: the trace's id decides, so that services of the same ratio agree; else a secret does.
        obeys_caller: a caller's sampled flag decides where there is a caller.
        unsupported: one line if ``OTEL_TRACES_SAMPLER`` names another sampler.
    """

    rate: float
    text: str
    by_trace_id: bool = False
    obeys_caller: bool = True
    unsupported: str | None = None


def choose(settings: Settings, env: Mapping[str, str] | None = None) -> Choice:
    """The sampler that the settings and the ``OTEL_*`` variables name.

    A wrong ``OTEL_TRACES_SAMPLER_ARG`` stops a start (:mod:`corevital_otel.otlp.rules`); here it counts as unset, 1.

    Args:
        settings: the server's.
        env: ``OTEL_*`` variables, those of the process by default.
    """
    env = os.environ if env is None else env
    asked = given(env, _SAMPLER)
    rate = f"sample rate {settings.sample_rate:g}"
    if "sample_rate" in settings.model_fields_set:
        return Choice(settings.sample_rate, f"{rate} (overrides {_SAMPLER})" if asked else rate)
    if asked is None:
        return Choice(settings.sample_rate, rate)
    name, unsupported = asked.lower(), None
    if name not in _SAMPLERS:
        unsupported = (
            f"{_SAMPLER}={printable(repr(asked), 60)} is not supported, so {_DEFAULT} applies: "
            f"use one of {', '.join(_SAMPLERS)}"
        )
        name = _DEFAULT
    share, text = _ROOTS[name.removeprefix(_PARENT_BASED)], f"sampler {name}"
    if share is None:
        share = _ratio(env)
        text = f"{text} {share:g}"
    return Choice(share, text, True, name.startswith(_PARENT_BASED), unsupported)


def _ratio(env: Mapping[str, str]) -> float:
    argument = given(env, "OTEL_TRACES_SAMPLER_ARG")
    return 1.0 if argument is None or any(rules.sampler_argument(env)) else float(argument)
