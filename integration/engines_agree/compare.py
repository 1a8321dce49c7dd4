"""How far apart two engines are, token by token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from integration.engines_agree.asks import PENALTIES, Answer, are_same_logits

TOLERANCE: Final = 1e-3
"""Bits, or probability. All engines compute in float32, each with its own kernels."""
VALUES: Final = ("entropy", "surprisal", "margin")


class Pair(NamedTuple):
    """Two engines, under one penalty.

    Attributes:
        first, second: their names.
        penalty: the repetition penalty.
        tokens: how many were compared; 0: the stages are different logits.
        other_tokens: answers whose tokens differ; they are compared up to there.
        furthest: largest absolute difference by value; NaN where one side is missing.
    """

    first: str
    second: str
    penalty: float
    tokens: int
    other_tokens: int
    furthest: Mapping[str, float]

    @property
    def agrees(self) -> bool:
        """Within the tolerance, or not to be compared. NaN is not within."""
        return not self.other_tokens and all(value <= TOLERANCE for value in self.furthest.values())


def pairs(found: Mapping[str, Sequence[Answer]]) -> list[Pair]:
    """Each pair of engines under each penalty."""
    return [
        _pair(first, second, penalty, _under(found[first], penalty), _under(found[second], penalty))
        for penalty in PENALTIES
        for first, second in combinations(found, 2)
    ]


def _under(answers: Sequence[Answer], penalty: float) -> list[Answer]:
    return [answer for answer in answers if answer.penalty == penalty]


def _pair(first: str, second: str, penalty: float, ours: list[Answer], theirs: list[Answer]) -> Pair:
    both = [(one, other) for one, other in zip(ours, theirs, strict=True) if are_same_logits(one, other)]
    compared = [_compare(one, other) for one, other in both]
    furthest = {name: max((values[name] for _, values in compared), key=_worst) for name in VALUES if compared}
    other_tokens = sum(one.tokens != other.tokens for one, other in both)
    return Pair(first, second, penalty, sum(count for count, _ in compared), other_tokens, furthest)


def _worst(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _compare(one: Answer, other: Answer) -> tuple[int, dict[str, float]]:
    """How many tokens were compared, and the largest differences, up to the first token that differs."""
    length = min(len(one.tokens), len(other.tokens))
    same = next((at for at in range(length) if one.tokens[at] != other.tokens[at]), length)
    if not same or one.series is None or other.series is None or min(len(one.series), len(other.series)) < same:
        return 0, dict.fromkeys(VALUES, math.nan)
    return same, {
        name: float(np.max(np.abs(getattr(one.series, name)[:same] - getattr(other.series, name)[:same])))
        for name in VALUES
    }


def table(found: Mapping[str, Sequence[Answer]], missing: Mapping[str, str]) -> list[str]:
    """Markdown: the engines, those not run, and each pair."""
    heads = [f"stage, {_named(penalty)}" for penalty in PENALTIES]
    lines = [f"| engine | version | {' | '.join(heads)} |", "| --- | --- | --- | --- |"]
    for name, answers in found.items():
        stages = [", ".join(dict.fromkeys(one.stage for one in _under(answers, penalty))) for penalty in PENALTIES]
        lines.append(f"| {name} | {answers[0].version} | {' | '.join(f'`{stage}`' for stage in stages)} |")
    lines += [f"| {name} | not run: {why} | | |" for name, why in missing.items()]
    lines += ["", f"| pair | requests | tokens | {' | '.join(VALUES)} |", f"|{' --- |' * (3 + len(VALUES))}"]
    return lines + [_line(pair) for pair in pairs(found)]


def _line(pair: Pair) -> str:
    if not pair.furthest:
        cells = ["other stages", *[""] * len(VALUES)]
    else:
        differ = f", **{pair.other_tokens} answers differ**" if pair.other_tokens else ""
        cells = [f"{pair.tokens}{differ}", *map(_cell, pair.furthest.values())]
    return f"| {pair.first}, {pair.second} | {_named(pair.penalty)} | {' | '.join(cells)} |"


def _cell(value: float) -> str:
    return f"{value:.1e}" if value <= TOLERANCE else f"**{value:.1e}**"


def _named(penalty: float) -> str:
    return "plain" if penalty == 1 else f"repetition penalty {penalty:g}"
