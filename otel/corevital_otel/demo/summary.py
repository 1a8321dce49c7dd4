"""What the demo says of its traffic: how often the model was right, and how well risk told it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from corevital_otel.demo.tasks import KINDS, check
from corevital_otel.demo.traffic import Exchange
from corevital_otel.store.reader import StoredReport

_RESAMPLES: Final = 2000
_INTERVAL: Final = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Judged:
    """A sequence with its report; ``right`` is None where the task has no answer to check."""

    exchange: Exchange
    report: StoredReport
    right: bool | None


@dataclass(frozen=True, slots=True)
class Separation:
    """How well risk told right from wrong.

    Attributes:
        auroc: probability that a wrong answer has a higher risk than a right one of the same kind of task.
        low, high: bootstrap interval, 95 %.
        pairs: pairs of a right and a wrong answer it rests on.
        wrong, right: answers in these pairs.
    """

    auroc: float
    low: float
    high: float
    pairs: int
    wrong: int
    right: int


def judge(exchanges: Iterable[Exchange], reports: dict[tuple[str, int], StoredReport]) -> list[Judged]:
    """Join answers with their reports; what has no report is left out."""
    found = []
    for exchange in exchanges:
        report = reports.get((exchange.request_id, exchange.sequence))
        if report is not None:
            checkable = exchange.task.answer is not None
            found.append(Judged(exchange, report, check(exchange.task, exchange.text) if checkable else None))
    return found


def separation(judged: list[Judged], seed: int = 0) -> Separation | None:
    """AUROC within kinds of task, weighted by pairs, so that a hard kind of task does not pass for a risky answer.

    None where no kind has both right and wrong answers.
    """
    cells = []
    for kind in KINDS:
        of_kind = [item for item in judged if item.exchange.task.kind == kind and item.report.risk_score is not None]
        wrong = np.array([item.report.risk_score for item in of_kind if item.right is False], float)
        right = np.array([item.report.risk_score for item in of_kind if item.right], float)
        if len(wrong) and len(right):
            cells.append((wrong, right))
    if not cells:
        return None
    rng = np.random.default_rng(seed)
    samples = [
        _auroc([(rng.choice(wrong, len(wrong)), rng.choice(right, len(right))) for wrong, right in cells])
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(samples, _INTERVAL)
    return Separation(
        auroc=_auroc(cells),
        low=float(low),
        high=float(high),
        pairs=sum(len(wrong) * len(right) for wrong, right in cells),
        wrong=sum(len(wrong) for wrong, _ in cells),
        right=sum(len(right) for _, right in cells),
    )


def _auroc(cells: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]) -> float:
    above = sum(float((wrong[:, None] > right).sum() + 0.5 * (wrong[:, None] == right).sum()) for wrong, right in cells)
    return above / sum(len(wrong) * len(right) for wrong, right in cells)


def selection(judged: list[Judged], each: int = 3) -> list[Judged]:
    """Some sequences of each kind of task, the least and the most risky ones of it among them."""
    chosen = []
    for kind in KINDS:
        of_kind = sorted(
            (item for item in judged if item.exchange.task.kind == kind), key=lambda item: item.report.risk_score or 0.0
        )
        at: list[int] = np.unique(
            np.linspace(0, len(of_kind) - 1, min(each, len(of_kind))).round().astype(int)
        ).tolist()
        chosen += [of_kind[i] for i in at]
    return chosen
