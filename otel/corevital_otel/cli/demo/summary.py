"""Sums up the demo's traffic: which answers were right, and how well risk separated them from the wrong ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from corevital_otel.calibration.evaluation import Measures, evaluate
from corevital_otel.cli.demo.tasks import KINDS, check
from corevital_otel.cli.demo.traffic import Exchange
from corevital_otel.store.reader import StoredReport


@dataclass(frozen=True, slots=True)
class Judged:
    """A sequence with its report; ``right`` is None where the task has no answer to check."""

    exchange: Exchange
    report: StoredReport
    right: bool | None


def judge(exchanges: Iterable[Exchange], reports: dict[tuple[str, int], StoredReport]) -> list[Judged]:
    """Join answers with their reports. An answer without a report is left out."""
    found = []
    for exchange in exchanges:
        report = reports.get((exchange.request_id, exchange.sequence))
        if report is not None:
            checkable = exchange.task.answer is not None
            found.append(Judged(exchange, report, check(exchange.task, exchange.text) if checkable else None))
    return found


def separation(judged: Iterable[Judged]) -> Measures | None:
    """How well risk separates wrong answers from right ones of the same kind of task.

    Kinds of task are the groups, so that a hard kind of task does not pass for a risky answer. A kind without both
    right and wrong answers does not count; None where no kind is left.
    """
    scored = [item for item in judged if item.right is not None and item.report.risk_score is not None]
    outcomes = {(item.exchange.task.kind, item.right) for item in scored}
    used = [item for item in scored if (item.exchange.task.kind, not item.right) in outcomes]
    if not used:
        return None
    scores = np.array([item.report.risk_score for item in used], float)
    wrong = np.array([not item.right for item in used])
    return evaluate(scores, wrong, [item.exchange.task.kind for item in used]).overall


def selection(judged: list[Judged], each: int = 3) -> list[Judged]:
    """``each`` sequences of each kind of task, from the least to the most risky."""
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
