"""Attributes that some backends need besides the conventions, so that requests at risk can be found in them.

They are only ever added to spans that are sent; the store and the metrics do not have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from corevital_otel import conventions as names
from corevital_otel.otlp.destination import Destination
from corevital_otel.settings import Backend, backends_named
from corevital_otel.spans.attributes import Value

_LANGFUSE_PATH: Final = "/api/public/otel"
_PHOENIX_PORT: Final = 6006
_OWN_FLAGS: Final = {
    name: names.ALARM_RAISED if name == "alarm_raised" else names.HEALTH + name
    for name in (*names.FLAGS, *names.CONDITIONS)
    if name not in names.QUIET
}


def recognised(where: Destination | None) -> tuple[Backend, ...]:
    """The backend that an endpoint clearly belongs to, by its host, its path, or a port that only it uses."""
    if where is None:
        return ()
    try:
        url = urlsplit(where.url if "://" in where.url else f"//{where.url}")
        host, port = (url.hostname or "").lower(), url.port
    except ValueError:  # the exporter reports that
        return ()
    if _LANGFUSE_PATH in url.path or "langfuse" in host:
        return ("langfuse",)
    if "openlit" in host:
        return ("openlit",)
    return ("phoenix",) if "phoenix" in host or port == _PHOENIX_PORT else ()


def wanted(setting: str, where: Destination | None) -> tuple[Backend, ...]:
    """The backends that get attributes: those that ``COREVITAL_OTEL_PROFILE`` names, or the endpoint's.

    Raises:
        ValueError: the setting names none.
    """
    named = backends_named(setting)
    return recognised(where) if named is None else named


def attributes_for(backends: Sequence[Backend], span: Mapping[str, Any]) -> dict[str, Value]:
    """The attributes of these backends, out of those of a request's span."""
    found: dict[str, Value] = {}
    for backend in backends:
        found |= _MAKERS[backend](span)
    return found


def _flags(span: Mapping[str, Any]) -> list[str]:
    return [name for name, attribute in _OWN_FLAGS.items() if span.get(attribute)]


def _langfuse(span: Mapping[str, Any]) -> dict[str, Value]:
    """Langfuse filters metadata by text, so the level goes beside the score; flags and high risks show as levels."""
    level, flags = str(span[names.RISK_LEVEL]), _flags(span)
    found: dict[str, Value] = {
        names.LANGFUSE_METADATA + "risk_level": level,
        names.LANGFUSE_METADATA + "risk_basis": str(span[names.RISK_BASIS]),
        names.LANGFUSE_METADATA + "flags": ",".join(flags) or "none",
    }
    if (score := span.get(names.RISK_SCORE)) is not None:
        found[names.LANGFUSE_METADATA + "risk_score"] = f"{score:.2f}"
    if names.TAGS in span:
        found[names.LANGFUSE_TAGS] = tuple(span[names.TAGS])
    bad = [flag for flag in flags if flag not in names.HARMLESS]
    if names.ERROR_TYPE in span or any(flag in names.FLAGS for flag in bad):
        found[names.LANGFUSE_LEVEL] = "ERROR"
        found[names.LANGFUSE_STATUS] = ", ".join(bad) or "the engine reported an error"
    elif level == "high" or bad:
        factors = span.get(names.RISK_FACTORS, ()) if level == "high" else ()
        found[names.LANGFUSE_LEVEL] = "WARNING"
        found[names.LANGFUSE_STATUS] = "; ".join((*bad, *factors)) or "high risk"
    return found


def _openlit(span: Mapping[str, Any]) -> dict[str, Value]:
    """OpenLIT filters by equality and reads the conventions' older names."""
    return {
        names.OPENLIT_SYSTEM: str(span[names.PROVIDER_NAME]),
        names.OPENLIT_TOTAL_TOKENS: int(span[names.USAGE_INPUT_TOKENS] + span[names.USAGE_OUTPUT_TOKENS]),
        names.OPENLIT_AT_RISK: "yes" if span[names.RISK_LEVEL] == "high" or _flags(span) else "no",
    }


def _phoenix(span: Mapping[str, Any]) -> dict[str, Value]:
    """Phoenix counts tokens and shows models of spans whose OpenInference kind is LLM."""
    asked, made = int(span[names.USAGE_INPUT_TOKENS]), int(span[names.USAGE_OUTPUT_TOKENS])
    return {
        names.OPENINFERENCE_KIND: "LLM",
        names.OPENINFERENCE_MODEL: str(span[names.REQUEST_MODEL]),
        names.OPENINFERENCE_PROMPT_TOKENS: asked,
        names.OPENINFERENCE_COMPLETION_TOKENS: made,
        names.OPENINFERENCE_TOTAL_TOKENS: asked + made,
    }


_MAKERS: Final = {"langfuse": _langfuse, "openlit": _openlit, "phoenix": _phoenix}
