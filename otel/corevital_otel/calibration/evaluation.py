"""Measures scores within groups, such as models or tasks.

Pooled over groups with different base rates, a score that only recognises the group looks skilled. So the overall
measures compare runs of the same group: AUROC is the share of bad-good pairs *within a group* in the right order, Brier
skill is relative to each group's base rate, and the alerts are each group's riskiest runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital_otel.risk.table import FloatArray

Bools = npt.NDArray[np.bool_]

RESAMPLES: Final = 1000
BINS: Final = 10
_CELLS: Final = 1_000_000
"""Resampled runs in memory at a time: some 50 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Measures of one group, or within groups. None without both bad and good runs.

    Attributes:
        n, bad, base_rate: number of runs, of bad runs, and the share of bad runs.
        auroc: probability that a bad run scores above a good run of its group; ties count half.
        auroc_low, auroc_high: 95 % interval, by bootstrap over the runs of each group.
        ece: expected calibration error over ten bins of equal width (Guo et al. 2017).
        brier_skill: 1 - Brier score / Brier score of the group's base rate; 0 is as good as the base rate.
        precision: share of bad runs among those alerted on.
        recall: share of the bad runs that are alerted on.
        alert_rate: share of each group's runs alerted on, the riskiest. Runs tied at the last place count in equal
            parts.
    """

    n: int
    bad: int
    base_rate: float
    auroc: float | None
    auroc_low: float | None
    auroc_high: float | None
    ece: float
    brier_skill: float | None
    precision: float
    recall: float | None
    alert_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The measures of a table.

    Attributes:
        overall: within groups.
        groups: of each group.
        pooled_auroc: over all pairs, also those across groups. It does not measure skill.
        base_rate_auroc: the pooled AUROC of the groups' base rates alone.
    """

    overall: Measures
    groups: dict[str, Measures]
    pooled_auroc: float | None
    base_rate_auroc: float | None

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def evaluate(
    scores: FloatArray,
    bad: Bools,
    groups: Sequence[str] | None = None,
    *,
    alert_rate: float = 0.1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Measure scores.

    Args:
        scores: ``[n]``, 0 to 1, no NaN.
        bad: ``[n]``.
        groups: ``[n]`` names; None: all are one group, ``all``.
        alert_rate: share of each group's runs to alert on.
        resamples: of the bootstrap.
        seed: of the bootstrap; the same seed gives the same intervals.
    """
    names = np.array(["all"] * len(scores) if groups is None else [str(group) for group in groups])
    rows = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
    rng = np.random.default_rng(seed)
    drawn = {name: _resampled(scores[at], bad[at], resamples, rng) for name, at in rows.items()}
    base = np.array([bad[rows[name]].mean() for name in names])

    def measures(of: list[str]) -> Measures:
        return _measures([rows[name] for name in of], [drawn[name] for name in of], scores, bad, base, alert_rate)

    everything = [np.arange(len(scores))]
    return Evaluation(
        overall=measures(list(rows)),
        groups={name: measures([name]) for name in rows},
        pooled_auroc=_ratio(*_pairs(scores, bad, everything)),
        base_rate_auroc=_ratio(*_pairs(base, bad, everything)),
    )


def _measures(
    groups: list[npt.NDArray[Any]],
    drawn: list[tuple[FloatArray, FloatArray]],
    scores: FloatArray,
    bad: Bools,
    base: FloatArray,
    alert_rate: float,
) -> Measures:
    at = np.concatenate(groups)
    wins, pairs = (np.sum([part[i] for part in drawn], axis=0) for i in (0, 1))
    sampled = wins[pairs > 0] / pairs[pairs > 0]
    auroc = _ratio(*_pairs(scores, bad, groups))
    low, high = np.quantile(sampled, (0.025, 0.975)).tolist() if auroc is not None and len(sampled) else (None, None)
    alerted = np.concatenate([_riskiest(scores[group], alert_rate) for group in groups])
    return Measures(
        n=len(at),
        bad=int(bad[at].sum()),
        base_rate=float(bad[at].mean()),
        auroc=auroc,
        auroc_low=low,
        auroc_high=high,
        ece=_ece(scores[at], bad[at]),
        brier_skill=_skill(scores[at], bad[at], base[at]),
        precision=float((alerted * bad[at]).sum() / alerted.sum()),
        recall=_ratio(float((alerted * bad[at]).sum()), float(bad[at].sum())),
        alert_rate=float(alerted.mean()),
    )


def _pairs(scores: FloatArray, bad: Bools, groups: list[npt.NDArray[Any]]) -> tuple[float, float]:
    """The number of bad-good pairs within groups that are in the right order, and of all such pairs."""
    found = [_wins(scores[at][None], bad[at][None]) for at in groups]
    return float(sum(wins[0] for wins, _ in found)), float(sum(pairs[0] for _, pairs in found))


def _resampled(
    scores: FloatArray, bad: Bools, resamples: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    found = []
    while resamples > 0:
        rows = min(resamples, max(_CELLS // len(scores), 1))
        at = rng.integers(0, len(scores), (rows, len(scores)))
        found.append(_wins(scores[at], bad[at]))
        resamples -= rows
    wins, pairs = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return wins, pairs


def _wins(scores: FloatArray, bad: Bools) -> tuple[FloatArray, FloatArray]:
    """Pairs in the right order, and all pairs, of each row of ``[R, n]``: Mann and Whitney's U; ties count half."""
    values, place = np.unique(scores, return_inverse=True)
    rows, width = len(scores), len(values)
    cells = (place.reshape(scores.shape) + width * np.arange(rows)[:, None]).ravel()
    bads, goods = (np.bincount(cells, of.ravel(), rows * width).reshape(rows, width) for of in (bad, ~bad))
    wins = (bads * (goods.cumsum(axis=1) - goods / 2)).sum(axis=1)
    return wins, bads.sum(axis=1) * goods.sum(axis=1)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _ece(scores: FloatArray, bad: Bools) -> float:
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(bins, scores - bad, BINS))
    return float(gaps.sum() / len(scores))


def _skill(scores: FloatArray, bad: Bools, base: FloatArray) -> float | None:
    reference = float(((base - bad) ** 2).sum())
    return 1.0 - float(((scores - bad) ** 2).sum()) / reference if reference else None


def _riskiest(scores: FloatArray, share: float) -> FloatArray:
    """Weight of each run among the alerts, ``[n]``: 1 or 0, and equal parts for runs tied at the last place."""
    count = max(round(share * len(scores)), 1)
    last = np.sort(scores)[-count]
    above, tied = scores > last, scores == last
    found: FloatArray = above + tied * (count - above.sum()) / tied.sum()
    return found
