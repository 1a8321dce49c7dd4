"""What some backends need besides the conventions, so that requests at risk can be found in them.

A profile only ever adds attributes to spans; the store and the metrics know nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast, get_args
from urllib.parse import urlsplit

from corevital_otel import conventions as names
from corevital_otel.attributes import Value
from corevital_otel.destination import Destination

Profile = Literal["langfuse", "openlit", "phoenix"]

AUTO: Final = "auto"
NONE: Final = "none"
PROFILES: Final = get_args(Profile)

_LANGFUSE_PATH: Final = "/api/public/otel"
_PHOENIX_PORT: Final = 6006
_OWN_FLAGS: Final = {
    name: names.ALARM_RAISED if name == "alarm_raised" else names.HEALTH + name
    for name in (*names.FLAGS, *names.CONDITIONS)
    if name != "traffic_shifted"  # which is not this request's
}


def parse(setting: str) -> tuple[Profile, ...] | None:
    """The profiles that ``COREVITAL_OTEL_PROFILE`` names; None stands for ``auto``.

    Raises:
        ValueError: a name that is none.
    """
    wanted = tuple(name.strip() for name in setting.split(",") if name.strip())
    if wanted == (AUTO,):
        return None
    if wanted == (NONE,):
        return ()
    if not wanted or any(name not in PROFILES for name in wanted):
        raise ValueError("no such profile")
    return cast("tuple[Profile, ...]", wanted)


def recognised(where: Destination | None) -> tuple[Profile, ...]:
    """The backend that an endpoint is unmistakably of, by its host, its path or a port nobody else has."""
    if where is None:
        return ()
    try:
        url = urlsplit(where.url if "://" in where.url else f"//{where.url}")
        host, port = (url.hostname or "").lower(), url.port
    except ValueError:  # the exporter has its own words for that
        return ()
    if _LANGFUSE_PATH in url.path or "langfuse" in host:
        return ("langfuse",)
    if "openlit" in host:
        return ("openlit",)
    return ("phoenix",) if "phoenix" in host or port == _PHOENIX_PORT else ()


def attributes_for(profiles: Sequence[Profile], span: Mapping[str, Any]) -> dict[str, Value]:
    """What these backends need besides, out of the attributes of a request's span."""
    found: dict[str, Value] = {}
    for profile in profiles:
        found |= _MAKERS[profile](span)
    return found


def _flags(span: Mapping[str, Any]) -> list[str]:
    return [name for name, attribute in _OWN_FLAGS.items() if span.get(attribute)]


def _langfuse(span: Mapping[str, Any]) -> dict[str, Value]:
    """Langfuse filters metadata by text, so the level goes beside the score; faults and high risks show as levels."""
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
