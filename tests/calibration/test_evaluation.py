"""Skill is what remains within groups."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from corevital_otel.calibration.evaluation import evaluate


def test_base_rate_confounding_does_not_count_as_skill():
    """A score that only knows which task a run is of."""
    rng = np.random.default_rng(0)
    task = rng.integers(0, 2, 8000)
    bad = rng.random(8000) < np.where(task, 0.8, 0.1)
    score = np.where(task, 0.8, 0.1) + rng.normal(0, 0.02, 8000)
    found = evaluate(score, bad, task.astype(str).tolist(), resamples=100)
    assert found.pooled_auroc > 0.8
    assert found.base_rate_auroc > 0.8
    assert found.overall.auroc == pytest.approx(0.5, abs=0.04)
    assert abs(found.overall.brier_skill) < 0.05


def test_measures_are_their_definitions():
    rng = np.random.default_rng(1)
    bad = rng.random(500) < 0.3
    score = np.clip(0.3 + 0.2 * bad + rng.normal(0, 0.15, 500), 0, 1).round(2)  # with ties
    found = evaluate(score, bad, alert_rate=0.2).overall
    assert (found.n, found.bad, found.base_rate) == (500, bad.sum(), bad.mean())
    assert found.auroc == pytest.approx(roc_auc_score(bad, score))
    assert found.auroc_low < found.auroc < found.auroc_high
    bins = np.minimum((score * 10).astype(int), 9)
    gaps = [abs(score[bins == b].mean() - bad[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    assert found.ece == pytest.approx(sum(gaps))
    base = bad.mean()
    assert found.brier_skill == pytest.approx(1 - ((score - bad) ** 2).mean() / (base * (1 - base)))
    orders = (rng.permutation(500) for _ in range(2000))  # ties are broken by chance
    top = np.mean([bad[order[np.argsort(-score[order], kind="stable")[:100]]].mean() for order in orders])
    assert found.precision == pytest.approx(top, abs=0.002)
    assert found.recall == pytest.approx(found.precision * 100 / bad.sum())


def test_the_interval_covers():
    """Scores with a true AUROC of one half: at least nine of ten intervals contain it."""
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(60):
        found = evaluate(rng.random(120), rng.random(120) < 0.4, resamples=200, seed=seed).overall
        held += found.auroc_low <= 0.5 <= found.auroc_high
    assert held >= 51


def test_a_group_of_one_kind_has_no_auroc_and_does_not_count():
    rng = np.random.default_rng(3)
    bad = np.array([True, False] * 50 + [True] * 100)
    score = rng.random(200)
    groups = ["mixed"] * 100 + ["bad"] * 100
    found = evaluate(score, bad, groups)
    assert found.groups["bad"].auroc is None
    assert found.overall.auroc == found.groups["mixed"].auroc


def test_the_same_seed_gives_the_same_twice():
    rng = np.random.default_rng(4)
    score, bad = rng.random(100), rng.random(100) < 0.5
    assert evaluate(score, bad) == evaluate(score, bad)


def test_runs_tied_at_the_last_place_count_in_parts_and_their_order_does_not():
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    bad = np.array([True, True, True, False, False, False])
    for order in (slice(None), slice(None, None, -1)):
        found = evaluate(scores[order], bad[order], alert_rate=0.5).overall
        assert (found.precision, found.recall, found.alert_rate) == pytest.approx((2 / 3, 2 / 3, 0.5))


def test_resampling_in_parts_gives_the_same(monkeypatch):
    rng = np.random.default_rng(5)
    score, bad = rng.random(400), rng.random(400) < 0.5
    whole = evaluate(score, bad).overall
    monkeypatch.setattr("corevital_otel.calibration.evaluation._CELLS", 30_000)
    parts = evaluate(score, bad).overall
    assert parts.auroc_low == pytest.approx(whole.auroc_low, abs=0.01)
    assert parts.auroc_high == pytest.approx(whole.auroc_high, abs=0.01)
