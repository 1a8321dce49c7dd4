"""Whether B answers a prompt as A does, at temperature 0, where A itself always gives the same answer.

Small damage, such as a coarse quantisation, moves each answer a little and in no direction: means stay, and only the
numbers of the same prompt show it. A's own noise is measured, not assumed: where one side has a prompt twice, the other
side's answer would by chance be the odd one out of three in a third of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from corevital_otel import conventions as names
from corevital_otel.compare.pairs import Samples
from corevital_otel.compare.signals import RISK, SIGNALS
from corevital_otel.risk.table import FloatArray
from corevital_otel.store.reader import StoredReport

ROUNDING: Final = 1e-4
"""Standard deviations below which two values are the same: what another order of sums does to float32."""
CHANCE: Final = 0.5
"""Share of prompts that must differ: more than a third, since another batch or kernel shifts answers, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How many prompts B answers differently.

    Attributes:
        prompts: prompts tested.
        differ: those where the answers of A and B differ more than those of one side do among themselves.
        low, high: 95 % interval of their share (Wilson).
        p: that so many differ if half of them did; not adjusted.
        repeated: prompts that one side answered twice; with the others both are exact.
    """

    prompts: int
    differ: int
    low: float
    high: float
    p: float
    repeated: int


def fidelity(samples: Samples, *, exact: bool) -> Fidelity | None:
    """Compare the answers to the same prompts.

    Args:
        samples: matched by prompt.
        exact: both sides compute in float32 on a CPU, so that prompts sent once can be used.

    Returns:
        None where no prompt can be used.
    """
    from scipy import stats  # type: ignore[import-untyped]

    units = [(a, b) for a, b in zip(samples.all_a, samples.all_b, strict=True) if _repeats(a[0])]
    if not units:
        return None
    values = np.array([_values(report) for a, b in units for report in (*a, *b)])
    scale = np.ma.masked_invalid(values).std(axis=0).filled(0.0)
    near = _near(np.where(scale > 0, scale, 1.0))
    triples = [(a, b) if len(a) > 1 else (b, a) for a, b in units if max(len(a), len(b)) > 1]
    marks = [_odd(pair, other, near) for pair, other in triples]
    if exact:
        marks += [near(a[0], b[0]) > ROUNDING for a, b in units if max(len(a), len(b)) == 1]
    if not marks:
        return None
    found = stats.binomtest(sum(marks), len(marks), CHANCE, alternative="greater")
    interval = stats.binomtest(sum(marks), len(marks)).proportion_ci(method="wilson")
    return Fidelity(
        prompts=len(marks),
        differ=sum(marks),
        low=float(interval.low),
        high=float(interval.high),
        p=float(found.pvalue),
        repeated=len(triples),
    )


def _repeats(report: StoredReport) -> bool:
    """Whether the same request would be answered the same way."""
    temperature = report.summary.get(names.REQUEST_TEMPERATURE)
    return temperature == 0 or (temperature is None and report.summary.get(names.ENGINE) == "transformers")


def _values(report: StoredReport) -> FloatArray:
    return np.array([signal.value(report) for signal in SIGNALS if signal.sign and signal.name != RISK])


def _near(scale: FloatArray) -> Callable[[StoredReport, StoredReport], float]:
    """The largest difference of two requests' signals, in standard deviations."""

    def distance(one: StoredReport, other: StoredReport) -> float:
        gaps: npt.NDArray[np.float64] = np.abs(_values(one) - _values(other)) / scale
        known = gaps[np.isfinite(gaps)]
        return float(known.max()) if len(known) else 0.0

    return distance


def _odd(
    pair: list[StoredReport], other: list[StoredReport], near: Callable[[StoredReport, StoredReport], float]
) -> bool:
    """Whether the other side's first answer is the odd one out of three."""
    own = near(pair[0], pair[1])
    return min(near(one, other[0]) for one in pair[:2]) > max(own, ROUNDING)
