"""The shipped default: cautious, explained, and independent of flags."""

import dataclasses

import pytest

from corevital.frames.lifecycle import Admitted
from corevital_otel.report import Features, Health
from corevital_otel.risk import MEDIUM, PriorRisk
from corevital_otel.risk.prior import PRIOR_SIGNALS

ADMITTED = Admitted(
    request_id="r", engine_id="r", sequence=0, operation="chat", model="m", arrival_ns=0, prompt_tokens=1
)

# Quantiles of the reference table's 251 answers that were not truncated: total entropy, total surprisal, peak, spread.
REFERENCE = {
    0.05: (77.5, 35.8, 5.0, 0.64),
    0.50: (157.3, 65.6, 6.6, 0.88),
    0.90: (253.7, 105.5, 8.9, 1.06),
    0.99: (351.1, 153.2, 9.6, 1.22),
}


def features(entropy_sum, surprisal_sum, peak, spread, **others) -> Features:
    return Features(
        tokens=400,
        entropy_mean=entropy_sum / 400,
        entropy_sum=entropy_sum,
        surprisal_sum=surprisal_sum,
        entropy_max=peak,
        entropy_std=spread,
        **others,
    )


def assess(features: Features, health: Health | None = None, threshold: float = 0.7):
    return PriorRisk(threshold).assess(features, health or Health(), ADMITTED)


def test_ordinary_traffic_is_low_and_unusual_traffic_is_not_yet_high():
    levels = {quantile: assess(features(*values)).level for quantile, values in REFERENCE.items()}
    assert levels == {0.05: "low", 0.50: "low", 0.90: "medium", 0.99: "medium"}


def test_an_output_of_noise_is_high_with_factors():
    risk = assess(features(3000.0, 3000.0, 12.0, 2.0, confidence_min=3.2, margin_min=1e-5))
    assert risk.level == "high"
    assert risk.basis == "prior"
    assert set(risk.factors) == {
        "total entropy 3000 bits",
        "total surprisal 3000 bits",
        "entropy peak 12.0 bits",
        "entropy spread 2.0 bits",
        "least confident stretch 3.2 nats",
        "closest margin 1e-05",
    }


def test_factors_are_those_that_raised_it_strongest_first():
    risk = assess(features(400.0, 20.0, 12.0, 0.2))
    assert risk.factors == ("entropy peak 12.0 bits", "total entropy 400 bits")


def test_flags_do_not_change_the_score():
    faulty = Health(nan_detected=True, inf_detected=True, repetition_loop_detected=True, truncated=True)
    calm = features(*REFERENCE[0.5])
    assert assess(calm, faulty) == assess(calm)


@pytest.mark.parametrize("signal", range(6))
def test_more_of_a_signal_never_lowers_the_score(signal):
    curve = PRIOR_SIGNALS[signal].curve
    values = [0.0, 1e-6, 1e-3, 0.1, 1.0, 5.0, 10.0, 1e3, 1e6]
    points = [curve(value) for value in values]
    rising = PRIOR_SIGNALS[signal].steepness > 0
    assert points == sorted(points, reverse=not rising)
    assert all(0.0 <= point <= 1.0 for point in points)


def test_without_features_there_is_no_score():
    for empty in (Features(), Features(tokens=3), dataclasses.replace(features(1, 1, 1, 1), tokens=0)):
        risk = assess(empty)
        assert (risk.score, risk.level, risk.factors) == (None, "unknown", ())


def test_missing_signals_are_left_out_of_the_mean():
    whole = features(220.0, 110.0, 8.0, 1.1)
    assert assess(whole).score == pytest.approx(0.5)
    assert assess(dataclasses.replace(whole, surprisal_sum=None)).score == pytest.approx(0.5)


def test_levels_meet_at_their_thresholds():
    middle = features(220.0, 110.0, 8.0, 1.1)  # a score of one half
    assert assess(middle, threshold=0.5).level == "high"
    assert assess(middle, threshold=0.51).level == "medium"
    assert assess(middle, threshold=0.3).level == "high"
    assert MEDIUM < 0.5
