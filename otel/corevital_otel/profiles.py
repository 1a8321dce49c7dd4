"""What some backends need besides the conventions, so that requests at risk can be found in them.

A profile only ever adds attributes to spans; the store and the metrics know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, cast, get_args
from urllib.parse import urlsplit

from corevital_otel import conventions as names
from corevital_otel.attributes import Value
from corevital_otel.otlp import Destination
from corevital_otel.report import RequestReport

Profile = Literal["langfuse", "openlit", "phoenix"]

AUTO: Final = "auto"
NONE: Final = "none"
PROFILES: Final = get_args(Profile)

_LANGFUSE_PATH: Final = "/api/public/otel"
_PHOENIX_PORT: Final = 6006


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


def attributes_for(profiles: Sequence[Profile], report: RequestReport) -> dict[str, Value]:
    """What these backends need on the span of a report, besides the conventions."""
    found: dict[str, Value] = {}
    for profile in profiles:
        found |= _MAKERS[profile](report)
    return found


def _langfuse(report: RequestReport) -> dict[str, Value]:
    """Langfuse filters metadata by text, so the level goes beside the score; faults and high risks show as levels."""
    risk, flags = report.risk, report.health.flags
    found: dict[str, Value] = {
        names.LANGFUSE_METADATA + "risk_level": risk.level,
        names.LANGFUSE_METADATA + "risk_basis": risk.basis,
        names.LANGFUSE_METADATA + "flags": ",".join(flags) or "none",
    }
    if risk.score is not None:
        found[names.LANGFUSE_METADATA + "risk_score"] = f"{risk.score:.2f}"
    if report.admitted.tags:
        found[names.LANGFUSE_TAGS] = report.admitted.tags
    broken = [flag for flag in flags if flag != "truncated"]
    if report.outcome.reason == "error" or broken:
        found[names.LANGFUSE_LEVEL] = "ERROR"
        found[names.LANGFUSE_STATUS] = ", ".join(broken) or "the engine reported an error"
    elif risk.level == "high":
        found[names.LANGFUSE_LEVEL] = "WARNING"
        found[names.LANGFUSE_STATUS] = "; ".join(risk.factors) or "high risk"
    return found


def _openlit(report: RequestReport) -> dict[str, Value]:
    """OpenLIT filters by equality and reads the conventions' older names."""
    tokens = report.admitted.prompt_tokens + len(report.outcome.token_ids)
    return {
        names.OPENLIT_SYSTEM: report.admitted.engine,
        names.OPENLIT_TOTAL_TOKENS: tokens,
        names.OPENLIT_AT_RISK: "yes" if report.risk.level == "high" or report.health.flags else "no",
    }


def _phoenix(report: RequestReport) -> dict[str, Value]:
    """Phoenix counts tokens and shows models of spans whose OpenInference kind is LLM."""
    admitted, made = report.admitted, len(report.outcome.token_ids)
    return {
        names.OPENINFERENCE_KIND: "LLM",
        names.OPENINFERENCE_MODEL: admitted.model,
        names.OPENINFERENCE_PROMPT_TOKENS: admitted.prompt_tokens,
        names.OPENINFERENCE_COMPLETION_TOKENS: made,
        names.OPENINFERENCE_TOTAL_TOKENS: admitted.prompt_tokens + made,
    }


_MAKERS: Final = {"langfuse": _langfuse, "openlit": _openlit, "phoenix": _phoenix}
