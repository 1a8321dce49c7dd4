"""A report as the caller sees it: a few values, and one level for the whole answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from corevital_otel.report import RequestReport

_ORDER: Final = ("low", "unknown", "medium", "high")
"""Levels from the best to the worst: one that is not known may be any."""
UNKNOWN: Final = "unknown"


def verdict(report: RequestReport) -> dict[str, Any]:
    """The verdict on one choice of an answer. A score that is not known is None."""
    risk, health = report.risk, report.health
    return {
        "index": report.admitted.sequence,
        "risk_score": None if risk.score is None else round(risk.score, 6),
        "risk_level": risk.level,
        "risk_basis": risk.basis,
        "flags": list(health.flags),
        "loop_onset": health.loop_onset,
    }


def worst(verdicts: Sequence[dict[str, Any]] | None) -> str:
    """The worst level among these; ``unknown`` where there is none."""
    levels = [one["risk_level"] for one in verdicts or ()]
    return max(levels, key=_ORDER.index) if levels else UNKNOWN


def raised(verdicts: Sequence[dict[str, Any]] | None) -> list[str]:
    """The flags of all of these, each once."""
    return list(dict.fromkeys(flag for one in verdicts or () for flag in one["flags"]))


def as_json(value: Any) -> bytes:
    """A value as compact JSON, ASCII."""
    return json.dumps(value, separators=(",", ":")).encode()
