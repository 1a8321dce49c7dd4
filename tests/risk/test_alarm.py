"""The conformal threshold keeps its rate on good runs, and the running maximum is the feature it ends as."""

import math

import numpy as np
import pytest

from corevital_otel.measure import features
from corevital_otel.report import Series
from corevital_otel.risk.alarm import SIGNALS, Alarm, running_maximum


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
