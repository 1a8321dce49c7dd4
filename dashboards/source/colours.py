"""Fixed colours: green is well, amber needs a look, red is bad, and a name has the same colour in every panel."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models.dashboard import (
    DynamicConfigValue,
    MappingType,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)

GREEN: Final = "green"
AMBER: Final = "orange"
RED: Final = "red"
GREY: Final = "#8e8e8e"

LABELS: Final[Mapping[str, Mapping[str, str]]] = {
    "risk_level": {"low": GREEN, "medium": AMBER, "high": RED, "unknown": GREY},
    "flag": {
        "nan_detected": "dark-red",
        "inf_detected": "purple",
        "repetition_loop_detected": RED,
        "truncated": "blue",
    },
    "warning": {
        "sustained_high_entropy": AMBER,
        "distribution_collapsed": "yellow",
        "alarm_raised": RED,
        "traffic_shifted": "blue",
        "template_detected": GREY,
    },
    "finish_reason": {
        "stop": GREEN,
        "length": "blue",
        "abort": AMBER,
        "error": RED,
        "repetition": "purple",
        "other": GREY,
    },
}
"""Colours of a label's values, for legends that are this label alone."""
NAMES: Final[Mapping[str, str]] = {
    "running": "blue",
    "waiting": AMBER,
    "looping": RED,
    "alarmed": "dark-orange",
    "p50": "super-light-blue",
    "p95": "blue",
    "p99": "dark-blue",
    "critical": RED,
    "warning": AMBER,
}
"""Colours of fixed legends."""

_QUANTILES: Final = ("p50", "p95", "p99")

STATES: Final[Mapping[int, tuple[str, str]]] = {
    0: ("no alert", GREEN),
    1: ("no answer", GREY),
    2: ("warning", AMBER),
    3: ("critical", RED),
}
"""Text and colour of a state, as the rules record it."""
SEVERITIES: Final[Mapping[int, tuple[str, str]]] = {
    1: ("info", "blue"),
    2: ("warning", AMBER),
    3: ("critical", RED),
}


def fixed(legends: Iterable[str]) -> Iterator[tuple[str, DynamicConfigValue]]:
    """Regular expressions of series' names, and their colours, for those legends that have some.

    A quantile's dashed line of the time before has the quantile's colour.
    """
    for legend in legends:
        label = legend.removeprefix("{{").removesuffix("}}")
        names = LABELS.get(label, {}) if legend == f"{{{{{label}}}}}" else {}
        if legend in NAMES:
            names = {f"{legend}(, .*before)?" if legend in _QUANTILES else legend: NAMES[legend]}
        for name, colour in names.items():
            yield name, DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})


def named(texts: Mapping[int, tuple[str, str]]) -> ValueMap:
    """A mapping of numbers to texts and colours."""
    options = {
        str(value): ValueMappingResult(text=text, color=colour, index=at)
        for at, (value, (text, colour)) in enumerate(texts.items())
    }
    made = ValueMap(options=options)
    made.type_val = MappingType.VALUE_TO_TEXT
    return made


def steps(amber_from: float | None, red_from: float | None, below: str = GREEN) -> builders.ThresholdsConfig:
    """Green, amber and red; without amber the step is left out."""
    made = [Threshold(value=None, color=below)]
    made += [
        Threshold(value=at, color=colour) for at, colour in ((amber_from, AMBER), (red_from, RED)) if at is not None
    ]
    return builders.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(made)
