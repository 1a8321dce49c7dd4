"""Which way each feature points: +1 where high values are known to be risky, -1 where low ones are.

Uncertainty points to errors: entropy and surprisal up, margin, confidence and mass down (Kadavath et al. 2022,
arXiv:2207.05221; Fu et al. 2025, arXiv:2508.15260). A fit on few labels may find the opposite by chance, and then gives
a calm answer as a reason for high risk. So no weight may point the other way. Features that are not here have no
known direction: the length, by which totals are compared fairly, and trends.
"""

from __future__ import annotations

from typing import Final

DIRECTIONS: Final = {
    "entropy_mean": 1,
    "entropy_max": 1,
    "entropy_std": 1,
    "entropy_sum": 1,
    "entropy_early": 1,
    "entropy_group_max": 1,
    "entropy_rebound": 1,
    "entropy_bursts": 1,
    "high_entropy_steps": 1,
    "high_entropy_run": 1,
    "surprisal_mean": 1,
    "surprisal_max": 1,
    "surprisal_std": 1,
    "surprisal_sum": 1,
    "surprisal_early": 1,
    "perplexity": 1,
    "margin_mean": -1,
    "margin_min": -1,
    "margin_early": -1,
    "margin_close_share": 1,
    "topk_mass_mean": -1,
    "confidence_mean": -1,
    "confidence_min": -1,
    "confidence_early": -1,
    "confidence_tail": -1,
    "repetition_share": 1,
}
"""By the features' names in :class:`~corevital_otel.report.Features`."""
