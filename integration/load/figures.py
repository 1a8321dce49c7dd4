"""The figures of a load test, and whether they meet their targets."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from integration.bench.machine import interval, median_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """See ``targets.toml``."""

    error_share: float
    first_token_p95_ratio: float
    lost: int
    doubled: int

    @classmethod
    def read(cls, file: Path) -> Self:
        """From a TOML file that names each of them.

        Raises:
            ValueError: one is missing or unknown, or it is not TOML.
        """
        found = tomllib.loads(file.read_text())
        if wrong := set(found) ^ set(cls.__dataclass_fields__):
            raise ValueError(f"{file}: missing or unknown: {', '.join(sorted(wrong))}")
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Round:
    """What the clients of one server saw in one round."""

    requests: list[dict[str, Any]]
    seconds: float

    @classmethod
    def read(cls, file: Path, seconds: float) -> Self:
        """From what the load generator wrote."""
        return cls([json.loads(line) for line in file.read_text().splitlines()], seconds)

    @property
    def errors(self) -> list[str]:
        return [request["error"] for request in self.requests if request["error"]]

    @property
    def tokens_a_second(self) -> float:
        return sum(request["tokens"] for request in self.requests) / self.seconds

    def first_token_ms(self, share: float) -> float:
        return _quantile([request["first_s"] for request in self.requests if "first_s" in request], share) * 1e3

    def gap_ms(self, share: float) -> float:
        """Between two pieces of a stream."""
        return _quantile([gap for request in self.requests for gap in request["gaps_s"]], share) * 1e3

    def sequences(self) -> Counter[str]:
        """How many rows each request has, by its id. One that failed before its id was known may have any."""
        return Counter({request["id"]: request["sequences"] for request in self.requests if request["id"]})


def _quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def lost(sent: Counter[str], found: Counter[str]) -> int:
    """Sequences that were sent and not found."""
    return (sent - found).total()


def doubled(sent: Counter[str], found: Counter[str]) -> int:
    """Rows or spans beyond one for each sequence that was sent."""
    return (found - sent).total()


def judged(ratios: Sequence[float], most: float) -> str:
    """Whether a ratio is at most its target: where its interval decides that."""
    low, high = interval(ratios)
    return "met" if high <= most else "missed" if low > most else "not decided"


COLUMNS = {
    "first token p50, ms": (lambda one: one.first_token_ms(0.5), ".1f"),
    "first token p95, ms": (lambda one: one.first_token_ms(0.95), ".1f"),
    "between pieces p50, ms": (lambda one: one.gap_ms(0.5), ".2f"),
    "between pieces p99, ms": (lambda one: one.gap_ms(0.99), ".1f"),
    "output tokens a second": (lambda one: one.tokens_a_second, ".0f"),
    "requests a second": (lambda one: len(one.requests) / one.seconds, ".1f"),
}
"""How each is computed of a round, and shown."""


def ratios(plain: Sequence[Round], measured: Sequence[Round], name: str) -> list[float]:
    """Of one figure, with the plugin to without, round by round."""
    of, _ = COLUMNS[name]
    return [of(with_it) / of(without) for without, with_it in zip(plain, measured, strict=True)]


def table(plain: Sequence[Round], measured: Sequence[Round]) -> str:
    """Medians of the rounds with their 95 % intervals, in Markdown."""
    lines = ["| figure | without | with the plugin | ratio, round by round |", "| --- | --- | --- | --- |"]
    for name, (of, digits) in COLUMNS.items():
        cells = [median_interval([of(one) for one in rounds], digits) for rounds in (plain, measured)]
        lines.append(f"| {name} | {' | '.join(cells)} | {median_interval(ratios(plain, measured, name), '.3f')} |")
    return "\n".join(lines)
