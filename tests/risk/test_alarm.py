"""The conformal threshold keeps its rate on good runs, and the running maximum is the feature it ends as."""

import math

import numpy as np
import pytest

from corevital_otel.calibration.alarm_choice import choose, trials
from corevital_otel.measure import features
from corevital_otel.report import Series
from corevital_otel.risk.alarm import SIGNALS, Alarm, running_maximum
from corevital_otel.risk.table import Runs


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
def test_good_runs_alarm_at_the_rate_asked_for(rate):
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        alarm = Alarm("entropy_max", tuple(np.sort(rng.gamma(3.0, size=200)).tolist()))
        rates.append((rng.gamma(3.0, size=500) > alarm.threshold(rate)).mean())
    assert np.mean(rates) == pytest.approx(rate, abs=0.005)
    assert np.mean(rates) <= rate + 0.002


def test_too_few_good_runs_never_alarm():
    assert Alarm("entropy_max", (1.0, 2.0, 3.0)).threshold(0.05) == math.inf
    assert Alarm("entropy_max", (1.0, 2.0, 3.0)).threshold(0.25) == 3.0


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 200])
def test_the_running_maximum_ends_as_the_feature(tokens):
    rng = np.random.default_rng(tokens)
    entropy, surprisal, margin, mass = rng.gamma(1.0, size=(4, tokens)).astype(np.float32)
    entropy[tokens // 2 :: 7] = np.nan if tokens > 1 else entropy[0]
    series = Series(entropy=entropy, surprisal=surprisal, margin=margin, topk_mass=mass)
    found = features.of_series(series)
    for signal in ("entropy_max", "surprisal_max", "margin_min", "entropy_group_max"):
        line = running_maximum(series, signal)
        assert len(line) == tokens
        assert (np.diff(line[np.isfinite(line)]) >= 0).all()
        assert line[-1] == pytest.approx(SIGNALS[signal] * getattr(found, signal), rel=1e-5)
    with pytest.raises(ValueError, match="no confidence_min in a stored series"):
        running_maximum(series, "confidence_min")


def tied(n: int, seed: int = 0) -> tuple[Runs, np.ndarray]:
    """Runs of a bfloat16 model: the lowest margin is 0 in nine of ten, and in every bad one."""
    rng = np.random.default_rng(seed)
    bad = rng.random(n) < 0.4
    margin = np.where(bad | (rng.random(n) < 0.85), 0.0, 0.01)
    peak = rng.gamma(3.0, size=n) + 3.0 * bad
    return Runs({"margin_min": margin, "entropy_max": peak}), bad


def test_an_alarm_that_cannot_fire_is_refused_and_the_next_signal_is_chosen():
    for seed in range(40):
        runs, bad = tied(100, seed)
        alarm = choose(runs, bad)
        assert alarm is not None
        assert alarm.signal == "entropy_max"
        best, refused = trials(runs, bad)
        assert (refused.alarm.signal, refused.refused) == ("margin_min", "it cannot fire: good runs are at its bound")
        assert best.bad[0] > 0
        assert best.bad[1] + best.good[1] == 100
        assert best.good[0] <= 0.05 * best.good[1]


def test_without_a_signal_that_finds_bad_runs_there_is_no_alarm():
    runs, bad = tied(100)
    assert choose(Runs({"margin_min": runs.columns["margin_min"]}), bad) is None
    same = np.where(bad, 1.0, np.arange(100.0))  # every bad run is calmer than the good ones
    (only,) = trials(Runs({"entropy_max": same}), bad)
    assert only.refused == "it would have found no bad run"


@pytest.mark.parametrize(("good", "fires"), [((-0.0,) * 60, False), ((-0.2,) * 60, True), ((-0.2,) * 3, False)])
def test_what_can_fire(good, fires):
    assert Alarm("margin_min", good).can_fire(0.05) is fires
