"""How a value is shown: a field's settings, its overrides, mappings, thresholds, units and colours."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

PALETTE: Final = {
    "green": "#73bf69",
    "orange": "#ff9830",
    "dark-orange": "#fa6400",
    "red": "#f2495c",
    "dark-red": "#c4162a",
    "yellow": "#fade2a",
    "blue": "#5794f2",
    "dark-blue": "#1f60c4",
    "super-light-blue": "#c0d8ff",
    "purple": "#b877d9",
    "text": "#ccccdc",
    "transparent": "#00000000",
}
"""Grafana's names of the colours that the dashboards use."""
CLASSIC: Final = (
    "#73bf69",
    "#f2cc0c",
    "#8ab8ff",
    "#ff780a",
    "#f2495c",
    "#5794f2",
    "#b877d9",
    "#705da0",
    "#37872d",
    "#fade2a",
)
"""For series without a fixed colour."""
_SCALES: Final = ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K"))
_TIMES: Final = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))


def colour(name: str) -> str:
    """
    Raises:
        KeyError: unknown to the palette; the picture would be wrong.
    """
    return name if name.startswith("#") else PALETTE[name]


@dataclass(frozen=True)
class Clock:
    """What times are shown: a run that is faster than ordinary has an ordinary clock.

    Attributes:
        start: unix seconds of the run's beginning, shown as ``shown`` hours.
        speed: seconds shown for each of the run.
        at: unix seconds that are "now".
    """

    start: float
    at: float
    speed: float = 1.0
    shown: float = 8.0

    def hours(self, time_s: float) -> float:
        return self.shown + (time_s - self.start) * self.speed / 3600

    def text(self, time_s: float) -> str:
        minutes = math.floor(self.hours(time_s) * 60 + 1e-6)
        return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"

    def ago(self, time_s: float) -> str:
        age = (self.at - time_s) * self.speed
        length, unit = next(((length, unit) for length, unit in _TIMES if age >= length), _TIMES[-1])
        count = round(age / length)
        return f"{count} {unit}{'' if count == 1 else 's'} ago"


class Field:
    """One field of a panel.

    Args:
        config: the panel's ``fieldConfig``.
        name: what overrides look for.
    """

    def __init__(self, config: Json, name: str) -> None:
        settings: Json = {**config.get("defaults", {})}
        for override in config.get("overrides", ()):
            if _matches(override["matcher"], name):
                settings |= {each["id"]: each["value"] for each in override["properties"]}
        self.name, self._settings = name, settings
        self.links: list[Json] = settings.get("links", [])
        self.unit: str = settings.get("unit", "short")

    def setting(self, name: str) -> Any:
        """A setting, also of ``custom``; None where there is none."""
        found = self._settings.get(name)
        if found is None and name.startswith("custom."):
            found = self._settings.get("custom", {}).get(name.removeprefix("custom."))
        return found

    def fixed_colour(self) -> str | None:
        chosen = self._settings.get("color") or {}
        return colour(chosen["fixedColor"]) if chosen.get("mode") == "fixed" else None

    def steps(self) -> list[tuple[float, str]]:
        """Thresholds: from which value on, and colour."""
        found = (self._settings.get("thresholds") or {}).get("steps", [])
        return [(-math.inf if step["value"] is None else step["value"], colour(step["color"])) for step in found]

    def shown(self, value: float, clock: Clock) -> tuple[str, str]:
        """Text and colour of a value."""
        mapped = self._mapped(value)
        if mapped:
            return mapped["text"], colour(mapped.get("color", "text"))
        reached = [step for start, step in self.steps() if value >= start]
        return self.text(value, clock), reached[-1] if reached else PALETTE["text"]

    def text(self, value: float, clock: Clock) -> str:
        """A number in its unit."""
        return UNITS[self.unit](value, self._settings.get("decimals"), clock)

    def legend(self) -> list[tuple[str, str]]:
        """Texts and colours of mapped values."""
        options = [mapping["options"] for mapping in self._settings.get("mappings", ()) if mapping["type"] == "value"]
        return [(each["text"], colour(each["color"])) for option in options for each in option.values()]

    def _mapped(self, value: float) -> Json | None:
        for mapping in self._settings.get("mappings", ()):
            if mapping["type"] == "value" and not math.isnan(value) and f"{value:g}" in mapping["options"]:
                found: Json = mapping["options"][f"{value:g}"]
                return found
            if mapping["type"] == "special" and mapping["options"]["match"] == "null+nan" and math.isnan(value):
                return {"text": "-", "color": "#8e8e8e", **mapping["options"]["result"]}
        return None


def _matches(matcher: Json, name: str) -> bool:
    if matcher["id"] == "byName":
        return bool(matcher["options"] == name)
    assert matcher["id"] == "byRegexp", matcher
    return re.fullmatch(matcher["options"], name) is not None


def _number(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _short(value: float, decimals: int | None, clock: Clock) -> str:
    factor, sign = next(((factor, sign) for factor, sign in _SCALES if abs(value) >= factor), (1.0, ""))
    return _number(value / factor, decimals) + sign


def _seconds(value: float, decimals: int | None, clock: Clock) -> str:
    return f"{_number(value * 1000, decimals)} ms" if 0 < abs(value) < 1 else f"{_number(value, decimals)} s"


UNITS: Final[Mapping[str, Callable[[float, int | None, Clock], str]]] = {
    "none": lambda value, decimals, clock: _number(value, decimals),
    "short": _short,
    "percentunit": lambda value, decimals, clock: f"{_number(100 * value, decimals)}%",
    "s": _seconds,
    "reqps": lambda value, decimals, clock: f"{_number(value, decimals)} req/s",
    "suffix: bits": lambda value, decimals, clock: f"{_number(value, decimals)} bits",
    "dateTimeAsIsoNoDateIfToday": lambda value, decimals, clock: clock.text(value / 1000),
    "dateTimeFromNow": lambda value, decimals, clock: clock.ago(value / 1000),
}
"""Each unit of the dashboards; one that is missing here fails."""
