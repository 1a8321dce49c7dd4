"""Goals, the rows that checks report, and the table they make."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

Verdict = Literal["pass", "fail", "dry", "figure"]
"""``dry``: has a goal that this machine cannot judge. ``figure``: has no goal."""

COLUMNS: Final = ("section", "check", "figure", "goal", "verdict")
BEGIN, END = "<!-- gpu table -->", "<!-- end of the gpu table -->"
_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, "=": operator.eq,
}  # fmt: skip


class Goal(NamedTuple):
    """What a figure should be.

    Attributes:
        sign: ``<=``, ``<``, ``>=`` or ``=``.
        limit: in the figure's unit.
        unit: written after both.
    """

    sign: str
    limit: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}{self.unit}"

    def is_met(self, figure: float) -> bool:
        """NaN never meets a goal."""
        return _COMPARISONS[self.sign](figure, self.limit)


class Row(NamedTuple):
    """One line of the table."""

    section: str
    check: str
    figure: str
    goal: str
    verdict: Verdict

    def __str__(self) -> str:
        goal = f" (goal {self.goal})" if self.goal else ""
        return f"{self.verdict.upper():6} {self.section:9} {self.check}: {self.figure}{goal}"


class Report:
    """Takes the rows of one section.

    Args:
        section: its name.
        take: where rows go.
        judges: False where speed and memory are not those of a GPU.
    """

    def __init__(self, section: str, take: Callable[[Row], object], judges: bool = True) -> None:
        self._section = section
        self._take = take
        self._judges = judges

    def goal(self, check: str, figure: float, goal: Goal, more: str = "") -> None:
        """A figure that only a GPU gives, against its goal; ``more`` is written after it."""
        verdict: Verdict = "dry" if not self._judges else "pass" if goal.is_met(figure) else "fail"
        self._take(Row(self._section, check, f"{figure:.4g}{goal.unit}{more and ', '}{more}", str(goal), verdict))

    def check(self, check: str, is_right: bool, figure: str = "", goal: str = "") -> None:
        """Something that is right or wrong on any machine."""
        self._take(Row(self._section, check, figure or ("yes" if is_right else "no"), goal, _verdict(is_right)))

    def figure(self, check: str, figure: str) -> None:
        """A figure without a goal."""
        self._take(Row(self._section, check, figure, "", "figure"))

    def not_run(self, check: str, why: str) -> None:
        """What this machine cannot show. Never counts as passed."""
        self._take(Row(self._section, check, f"not run: {why}", "", "dry"))


def _verdict(is_right: bool) -> Verdict:
    return "pass" if is_right else "fail"


def is_failed(rows: Sequence[Row]) -> bool:
    """Whether any row failed, or none passed."""
    return any(row.verdict == "fail" for row in rows) or all(row.verdict != "pass" for row in rows)


def summary(rows: Sequence[Row], seconds: float) -> str:
    """One line: how many of each verdict, and the time."""
    counts = Counter(row.verdict for row in rows)
    words = {"pass": "passed", "fail": "failed", "dry": "not judged on this machine", "figure": "figures"}
    return ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items()) + f"; {seconds:.0f} s"  # type: ignore[index]


def markdown(rows: Sequence[Row], machine: str, seconds: float) -> str:
    """The table in Markdown, with the machine and the summary above it."""
    lines = [machine, "", summary(rows, seconds), ""]
    lines += [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line(row) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def write_between(page: Path, text: str) -> None:
    """Replace the text between the markers in a page.

    Raises:
        ValueError: the page does not have both markers once, in order.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest:
        raise ValueError(f"{page} has no place for the table: put {BEGIN} and {END} where it belongs")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
