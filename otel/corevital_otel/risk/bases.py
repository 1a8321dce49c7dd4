"""The basis that a server's settings ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from corevital.log import warn_once
from corevital_otel.errors import SettingsError
from corevital_otel.measure.features import PEAKS, Watch
from corevital_otel.report import RiskModel
from corevital_otel.risk.baseline import BaselineRisk
from corevital_otel.risk.calibrated import CalibratedRisk, Profile, ProfileError, load
from corevital_otel.risk.prior import PriorRisk
from corevital_otel.settings import Settings


def profile_of(settings: Settings) -> Profile | None:
    """The profile that ``COREVITAL_PROFILE`` names.

    Raises:
        SettingsError: the profile cannot be used.
    """
    if settings.profile is None:
        return None
    try:
        profile = load(settings.profile)
    except ProfileError as error:
        raise SettingsError(f"COREVITAL_PROFILE: {error}") from None
    if text := profile.weaknesses():
        warn_once("profile weaknesses", "the profile %s: %s", settings.profile, text)
    return profile


def risk_model(
    settings: Settings, profile: Profile | None, learned: Callable[[str, str, Sequence[float]], None]
) -> RiskModel:
    """The basis: ``calibrated`` with a profile, else by ``COREVITAL_RISK_BASIS``.

    Args:
        learned: as in :class:`BaselineRisk`.
    """
    threshold = settings.risk_threshold
    if profile is not None:
        return CalibratedRisk(profile, threshold)
    prior = PriorRisk(threshold)
    if settings.risk_basis == "prior":
        return prior
    until = prior if settings.risk_basis == "auto" else None
    return BaselineRisk(threshold, settings.baseline_alert_rate, until, learned)


def watch_of(settings: Settings, profile: Profile | None) -> tuple[str, Watch] | None:
    """The signal watched while sequences run.

    None without a profile that has enough good runs for the alarm rate, or if the alarm could never be raised.
    """
    alarm = profile.alarm if profile is not None else None
    if alarm is None or settings.alarm_rate <= 0:
        return None
    threshold = alarm.threshold(settings.alarm_rate)
    if math.isinf(threshold) or not alarm.can_fire(settings.alarm_rate):
        return None
    return alarm.signal, Watch(PEAKS.index(alarm.signal), threshold)
