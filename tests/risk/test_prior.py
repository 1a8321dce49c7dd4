"""The shipped default: cautious, explained, and independent of flags."""

import dataclasses

import pytest

from corevital.frames.lifecycle import Admitted
from corevital_otel.report import Features, Health
from corevital_otel.risk import MEDIUM, PriorRisk
from corevital_otel.risk.prior import LENGTH, PRIOR_SIGNALS

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


TOKENS = 432


def features(entropy_sum, surprisal_sum, peak, tokens=TOKENS, **others) -> Features:
    return Features(
        tokens=tokens,
        entropy_mean=entropy_sum / tokens,
        entropy_sum=entropy_sum,
        surprisal_mean=surprisal_sum / tokens,
        surprisal_sum=surprisal_sum,
        entropy_max=peak,
        **others,
    )


def assess(features: Features, health: Health | None = None, threshold: float = 0.7):
    return PriorRisk(threshold).assess(features, health or Health(), ADMITTED)


def test_ordinary_traffic_is_low_and_unusual_traffic_is_not_yet_high():
    levels = {quantile: assess(features(*values[:3])).level for quantile, values in REFERENCE.items()}
    assert levels == {0.05: "low", 0.50: "low", 0.90: "medium", 0.99: "medium"}


@pytest.mark.parametrize("tokens", [64, 128, 512, 2048, 30_000])
def test_the_same_text_is_not_high_for_its_length_and_word_salad_is_at_any(tokens):
    # bits a token of SmolLM2's long answers at temperatures of 0.7 and 1; an answer of 512 tokens is its limit
    assert assess(features(2.5 * tokens, 1.5 * tokens, 8.7, tokens)).level == "medium"
    assert assess(features(5.5 * tokens, 5.5 * tokens, 9.5, tokens)).level == "high"


def test_an_output_of_noise_is_high_with_factors():
    risk = assess(features(3000.0, 3000.0, 12.0, 400))
    assert risk.level == "high"
    assert risk.basis == "prior"
    assert set(risk.factors) == {
        "total entropy 3000 bits in 400 tokens",
        "total surprisal 3000 bits in 400 tokens",
        "entropy peak 12.0 bits",
    }


def test_factors_are_those_that_raised_it_strongest_first():
    risk = assess(features(1200.0, 20.0, 9.0))
    assert risk.factors == (f"total entropy 1200 bits in {TOKENS} tokens", "entropy peak 9.0 bits")


def test_flags_do_not_change_the_score():
    faulty = Health(nan_detected=True, inf_detected=True, repetition_loop_detected=True, truncated=True)
    calm = features(*REFERENCE[0.5][:3])
    assert assess(calm, faulty) == assess(calm)


@pytest.mark.parametrize("signal", range(len(PRIOR_SIGNALS)))
def test_more_of_a_signal_never_lowers_the_score(signal):
    points = [PRIOR_SIGNALS[signal].log_odds(value) for value in (0.0, 1e-6, 1e-3, 0.1, 1.0, 5.0, 10.0, 1e3, 1e6)]
    assert points == sorted(points)
    assert PRIOR_SIGNALS[signal].log_odds(PRIOR_SIGNALS[signal].middle) == 0.0


def test_no_signal_is_the_lowest_margin_which_is_at_its_bound_where_logits_tie():
    calm = features(*REFERENCE[0.5][:3], margin_min=0.0, margin_early=0.0)
    assert assess(calm) == assess(dataclasses.replace(calm, margin_min=0.9, margin_early=0.9))


def test_without_features_there_is_no_score():
    for empty in (Features(), Features(tokens=3), dataclasses.replace(features(1, 1, 1), tokens=0)):
        risk = assess(empty)
        assert (risk.score, risk.level, risk.factors) == (None, "unknown", ())


def middle() -> Features:
    """A score of one half in each signal."""
    entropy, surprisal, peak = (signal.middle for signal in PRIOR_SIGNALS)
    return features(entropy * TOKENS**LENGTH, surprisal * TOKENS**LENGTH, peak)


def test_missing_signals_are_left_out_of_the_mean():
    assert assess(middle()).score == pytest.approx(0.5)
    assert assess(dataclasses.replace(middle(), surprisal_sum=None)).score == pytest.approx(0.5)


def test_extremes_are_bounded():
    sure = features(0.0, 0.0, 0.0, 1)
    assert 0.0 < assess(sure).score < 0.01
    assert 0.99 < assess(features(1e30, 1e30, 1e30)).score <= 1.0
    assert 0.0 < assess(features(-1e30, -1e30, -1e30)).score < 0.01


def test_levels_meet_at_their_thresholds():
    score = assess(middle()).score
    assert assess(middle(), threshold=score).level == "high"
    assert assess(middle(), threshold=0.51).level == "medium"
    assert assess(middle(), threshold=0.3).level == "high"
    assert MEDIUM < 0.5
