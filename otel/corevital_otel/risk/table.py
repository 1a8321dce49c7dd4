"""Runs as a table: one row per run, with the features among its columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital_otel.conventions import FEATURES
from corevital_otel.report import Features
from corevital_otel.risk.levels import Scorer

FloatArray = npt.NDArray[np.float64]

_ALIASES: Final = {"tokens": ("generated_tokens", "output_tokens", "gen_ai.usage.output_tokens")}
"""Other names of a feature's column, besides the feature's and its attribute's."""
_TOTALS: Final = ("entropy", "surprisal")
"""For these a missing sum is the mean times the tokens."""
_COUNTS: Final = ("tokens", "entropy_bursts", "high_entropy_steps", "high_entropy_run")


@dataclass(frozen=True, slots=True)
class Runs:
    """The features of runs.

    Attributes:
        columns: by the names of :class:`~corevital_otel.report.Features`, each ``[n]`` float64, NaN where unknown.
        missing: features without a column.
    """

    columns: Mapping[str, FloatArray]
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: Mapping[str, Sequence[Any] | FloatArray]) -> Runs:
        """The features in a table's columns, whose names are the features' or their attributes'.

        A cell that is not a finite number is unknown. Any mapping from names to columns works, also a pandas
        ``DataFrame``.
        """
        found: dict[str, FloatArray] = {}
        for name, attribute in FEATURES.items():
            column = next((key for key in (name, attribute, *_ALIASES.get(name, ())) if key in table), None)
            if column is not None:
                found[name] = _numbers(table[column])
        for name in _TOTALS:
            if f"{name}_sum" not in found and f"{name}_mean" in found and "tokens" in found:
                found[f"{name}_sum"] = found[f"{name}_mean"] * found["tokens"]
        return cls(found, tuple(name for name in FEATURES if name not in found))

    @classmethod
    def of_features(cls, features: Sequence[Features]) -> Runs:
        """The runs with these features."""
        return cls({name: _numbers([getattr(one, name) for one in features]) for name in FEATURES})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __iter__(self) -> Iterator[Features]:
        """The features run by run. Unknown ``tokens`` is 1, since there was an output."""
        names = list(self.columns)
        for row in zip(*(column.tolist() for column in self.columns.values()), strict=True):
            values: dict[str, Any] = {
                name: None if math.isnan(value) else value for name, value in zip(names, row, strict=True)
            }
            for name in _COUNTS:
                if (count := values.get(name)) is not None:
                    values[name] = int(count)
                else:
                    values[name] = int(name == "tokens")
            yield Features(**values)

    def take(self, rows: npt.NDArray[Any]) -> Runs:
        """Some of the runs, by index or mask."""
        return Runs({name: column[rows] for name, column in self.columns.items()}, self.missing)


def scores(scorer: Scorer, runs: Runs) -> FloatArray:
    """Score of each run, ``[n]`` float64; NaN without a score."""
    return _numbers([scorer.score(features) for features in runs])


def _numbers(cells: Sequence[Any] | FloatArray) -> FloatArray:
    values = np.array([_number(cell) for cell in cells], np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _number(cell: Any) -> float:
    try:
        return math.nan if cell is None else float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan
