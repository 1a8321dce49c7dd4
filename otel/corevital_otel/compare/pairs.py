"""Requests as samples for a test: matched by prompt where both sides had the same prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from corevital_otel import conventions as names
from corevital_otel.risk.table import FloatArray
from corevital_otel.store.reader import StoredReport

LEAST_PAIRS: Final = 30
"""Pairs without which prompts are not matched."""

_SETTINGS: Final = (
    names.REQUEST_TEMPERATURE, names.REQUEST_TOP_P, names.REQUEST_TOP_K, names.REQUEST_MAX_TOKENS,
    names.OPERATION_NAME,
)  # fmt: skip
"""What requests with the same prompt must share, too, to be a pair."""

_Value = Callable[[StoredReport], float]


@dataclass(frozen=True, slots=True)
class Samples:
    """Two samples of independent units.

    A unit has as many requests on both sides where it is matched, else one: answers to the same prompt are alike, and
    would count as more evidence than they are.

    Attributes:
        a, b: the requests of each unit; matched, unit ``i`` of both has the same prompt and settings.
        all_a, all_b: matched, all requests of each unit, also those beyond the other side's number.
        matched: whether they are pairs.
        left_out: requests of both sides that are in no unit.
    """

    a: list[list[StoredReport]]
    b: list[list[StoredReport]]
    all_a: list[list[StoredReport]]
    all_b: list[list[StoredReport]]
    matched: bool
    left_out: int

    @classmethod
    def of(cls, a: Sequence[StoredReport], b: Sequence[StoredReport]) -> Samples:
        """Match by prompt where at least half of one side's prompts, and :data:`LEAST_PAIRS`, have a partner."""
        first, second = _grouped(a), _grouped(b)
        both = [key for key in first if key[0] is not None and key in second]
        matched = len(both) >= max(LEAST_PAIRS, min(len(first), len(second)) / 2)
        if matched:
            sizes = [min(len(first[key]), len(second[key])) for key in both]
            every = [first[key] for key in both], [second[key] for key in both]
            one, two = ([group[key][:size] for key, size in zip(both, sizes, strict=True)] for group in (first, second))
        else:
            every = [], []
            one, two = ([group[:1] for group in groups.values()] for groups in (first, second))
        used = sum(map(len, one)) + sum(map(len, two))
        return cls(one, two, *every, matched, len(a) + len(b) - used)

    def means(self, value: _Value) -> tuple[FloatArray, FloatArray]:
        """Mean of a value over each unit's requests.

        Units where it is not known (NaN) are left out, of both sides if matched.
        """
        a, b = (np.array([sum(map(value, unit)) / len(unit) for unit in units]) for units in (self.a, self.b))
        known = np.isfinite(a), np.isfinite(b)
        if self.matched:
            return a[known[0] & known[1]], b[known[0] & known[1]]
        return a[known[0]], b[known[1]]

    def firsts(self, mark: Callable[[StoredReport], bool]) -> tuple[np.ndarray, np.ndarray]:
        """Whether each unit's first request has a mark."""
        a, b = (np.array([mark(unit[0]) for unit in units], bool) for units in (self.a, self.b))
        return a, b


def _grouped(reports: Sequence[StoredReport]) -> dict[tuple[Any, ...], list[StoredReport]]:
    """Requests with the same prompt and settings; without a hash, the sequences of one request."""
    groups: dict[tuple[Any, ...], list[StoredReport]] = defaultdict(list)
    for report in reports:
        found = report.summary.get
        digest = found(names.PROMPT_HASH)
        groups[(None, report.request_id) if digest is None else (digest, *map(found, _SETTINGS))].append(report)
    return groups
