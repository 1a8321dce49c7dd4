"""Runs of a made-up model whose failures show in its entropy."""

from __future__ import annotations

import numpy as np
import pytest

from corevital_otel.report import Features


def make_runs(n: int, seed: int = 0, shift: float = 0.0, bad_share: float = 0.3) -> tuple[list[Features], np.ndarray]:
    """Features of ``n`` runs and which were bad; entropies of all are higher by the factor ``exp(shift)``."""
    rng = np.random.default_rng(seed)
    bad = rng.random(n) < bad_share
    level = np.exp(rng.normal(0.0, 0.4, n) + 0.6 * bad + shift)
    tokens = rng.integers(40, 400, n)
    noise = np.exp(rng.normal(0.0, 0.2, (n, 4)))
    runs = [
        Features(
            tokens=int(tokens[i]),
            entropy_mean=0.5 * level[i],
            entropy_sum=0.5 * level[i] * tokens[i],
            entropy_max=5.0 * level[i] * noise[i, 0],
            entropy_std=0.8 * level[i] * noise[i, 1],
            entropy_group_max=1.5 * level[i] * noise[i, 2],
            surprisal_mean=0.3 * level[i] * noise[i, 3],
            surprisal_sum=0.3 * level[i] * tokens[i] * noise[i, 3],
            confidence_min=9.0 / level[i],
            margin_min=0.02 / level[i],
        )
        for i in range(n)
    ]
    return runs, bad


@pytest.fixture(scope="session")
def runs():
    return make_runs
