"""How much of an objective's error budget a window of requests has used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from corevital_otel.slo.objectives import Objectives
from corevital_otel.store.reader import StoredReport

Verdict = Literal["met", "violated", "too little traffic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """An objective over a window.

    Attributes:
        objective: its name.
        target: share of the requests that must be good.
        requests, bad: requests that count, and those of them that use up budget.
        allowed: requests that may be bad, ``(1 - target) * requests``.
        used: ``bad / allowed``: above 1 the budget is used up. Over a window this is its burn rate. None without
            requests.
        least_requests: requests needed to say that it is met.
        verdict: ``violated`` also where fewer requests have used up the budget of ``least_requests``.
    """

    objective: str
    target: float
    requests: int
    bad: int
    allowed: float
    used: float | None
    least_requests: int
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def budgets(objectives: Objectives, reports: Sequence[StoredReport]) -> list[Budget]:
    """The budget of each objective over these requests."""
    found = []
    for name, objective in objectives.all().items():
        marks = [mark for report in reports if (mark := objective.is_bad(report)) is not None]
        count, bad, share = len(marks), sum(marks), 1 - objective.target
        enough = count >= objective.least
        # rounded: 1 - 0.99 is a little more than 0.01
        over = bad > round(share * max(count, objective.least), 9)
        found.append(
            Budget(
                objective=name,
                target=objective.target,
                requests=count,
                bad=bad,
                allowed=round(share * count, 9),
                used=bad / (share * count) if count else None,
                least_requests=objective.least,
                verdict="violated" if over else "met" if enough else "too little traffic",
            )
        )
    return found


def verdict(found: Iterable[Budget]) -> Verdict:
    """Of all objectives: one violated, else one with too little traffic, else all met."""
    every = {budget.verdict for budget in found}
    return "violated" if "violated" in every else "too little traffic" if "too little traffic" in every else "met"
