"""What is compared: signals of each request, and flags."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from corevital_otel import conventions as names
from corevital_otel.store.reader import StoredReport


@dataclass(frozen=True, slots=True)
class Signal:
    """A number of each request.

    Attributes:
        name: as in :data:`corevital_otel.conventions.FEATURES`, or ours.
        sign: 1 where high is bad, -1 where low is bad, 0: reported, and not judged.
        unit: of its values.
        value: its value for a request; NaN where it is not known.
    """

    name: str
    sign: int
    unit: str
    value: Callable[[StoredReport], float]


def _attribute(attribute: str) -> Callable[[StoredReport], float]:
    def value(report: StoredReport) -> float:
        found = report.summary.get(attribute)
        return float(found) if isinstance(found, int | float) else math.nan

    return value


RISK: Final = "risk_score"
SIGNALS: Final = (
    *(
        Signal(name, sign, unit, _attribute(names.FEATURES[name]))
        for name, sign, unit in (
            ("entropy_mean", 1, "bits"),
            ("entropy_max", 1, "bits"),
            ("surprisal_mean", 1, "bits"),
            ("surprisal_max", 1, "bits"),
            ("margin_mean", -1, ""),
            ("margin_min", -1, ""),
            ("topk_mass_mean", -1, ""),
            ("confidence_mean", -1, "nats"),
            ("confidence_min", -1, "nats"),
        )
    ),
    Signal(RISK, 1, "", lambda report: math.nan if report.risk_score is None else report.risk_score),
    Signal("output_tokens", 0, "tokens", lambda report: float(report.output_tokens)),
    Signal("first_token", 0, "s", _attribute(names.RESPONSE_TIME_TO_FIRST_CHUNK)),
)
"""Times depend on the load, and lengths on what was asked: both are reported, and decide nothing."""

ERROR: Final = "error"
"""In place of a flag: the engine failed the request."""
FLAGS: Final = (*names.FLAGS, *names.CONDITIONS, ERROR)
FAULTS: Final = tuple(flag for flag in FLAGS if flag not in names.HARMLESS)
"""Those that mean that an output is bad; the others are reported, and not judged."""


def has(flag: str, report: StoredReport) -> bool:
    """Whether a request has a flag, or failed."""
    return report.finish_reason == ERROR if flag == ERROR else flag in report.flags
