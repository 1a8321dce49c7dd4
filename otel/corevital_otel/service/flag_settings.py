"""From where on what a sequence shows is a flag, by the server's settings and its profile."""

from __future__ import annotations

from corevital.log import warn_once
from corevital_otel.measure.thresholds import Thresholds
from corevital_otel.risk.bases import watch_of
from corevital_otel.risk.calibrated import Profile
from corevital_otel.settings import Settings


def thresholds(settings: Settings, profile: Profile | None) -> Thresholds:
    """Warns once of an alarm that is asked for and cannot be raised.

    Args:
        settings: the server's.
        profile: what ``COREVITAL_PROFILE`` names, which may have an alarm.
    """
    alarm = watch_of(settings, profile)
    if "alarm" in settings.stops and alarm is None:
        warn_once(
            "stop on alarm",
            "COREVITAL_STOP_ON names alarm, and there is none: set COREVITAL_PROFILE to a profile with an alarm",
        )
    return Thresholds(
        high_entropy_bits=settings.high_entropy_bits,
        high_entropy_tokens=settings.high_entropy_tokens,
        collapse_tokens=settings.collapse_tokens,
        loop_tokens=settings.loop_tokens,
        alarm=alarm,
    )
