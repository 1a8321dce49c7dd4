"""Which sequences keep their per-token series: the one place that decides."""

from __future__ import annotations

from corevital.supported import CAPTURE_MODES, CaptureMode
from corevital_otel.report import Health, Risk


def mode_of(asked: str | None, default: CaptureMode) -> CaptureMode:
    """The mode of a sequence: its request's own, else the server's.

    Args:
        asked: what the request asked for; None or an unknown mode asks for nothing.
        default: the server's.
    """
    return asked if asked in CAPTURE_MODES else default


def collects(mode: CaptureMode) -> bool:
    """Whether a running sequence's values are collected: at its end they may be kept."""
    return mode != "summary"


def keeps(mode: CaptureMode, risk: Risk, health: Health) -> bool:
    """Whether an ended sequence's series is kept.

    ``on_risk`` keeps that of a sequence whose risk is high or that has a flag up, other
    than a quiet one; not that of one that is merely
    incomplete, which says something of the telemetry and nothing of the output.
    """
    return mode == "full" or (mode == "on_risk" and is_marked(risk, health))


def is_marked(risk: Risk, health: Health) -> bool:
    """Whether an ended sequence's risk is high or it has a flag up, other than a quiet one.

    With ``COREVITAL_DB_CONTENT=1`` the text of such a sequence is stored.
    """
    return risk.level == "high" or bool(health.loud_flags)
