"""The telemetry service: checks settings, runs the hub from frames to reports, sends undelivered spans again.

An engine's entry point needs two calls: :func:`prepare` while the engine is configured, :func:`start` once it is made.
"""

from corevital_otel.errors import SettingsError
from corevital_otel.measure.loop_check import LoopCheck
from corevital_otel.service.keeper import HubKeeper
from corevital_otel.service.startup import prepare, start
from corevital_otel.settings import Settings, load

__all__ = ["HubKeeper", "LoopCheck", "Settings", "SettingsError", "load", "prepare", "start"]
