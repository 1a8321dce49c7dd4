"""The basis that needs no labels: careful at its start, honest about shifts, the same after a restart."""

import dataclasses

import numpy as np
import pytest

from corevital.frames.lifecycle import Admitted
from corevital_otel.report import Health
from corevital_otel.risk import PriorRisk
from corevital_otel.risk.baseline import RECENT, SEEN, WINDOW, BaselineRisk, Reference, differ, signals
from corevital_otel.risk.table import Runs, scores

ADMITTED = Admitted(
    request_id="r",
    engine_id="r",
    sequence=0,
    operation="chat",
    model="m",
    arrival_ns=0,
    prompt_tokens=1,
    temperature=0.7,
)

HEALTHY = Health()


def assess(basis: BaselineRisk, features, health: Health = HEALTHY, **changes):
    return [basis.assess(one, health, dataclasses.replace(ADMITTED, **changes)) for one in features]


def baseline(until=None, learned=lambda *_: None) -> BaselineRisk:
    return BaselineRisk(0.7, 0.05, until, learned)


def test_no_score_until_enough_requests(runs):
    found = assess(baseline(), runs(SEEN + 1)[0])
    assert {(risk.score, risk.level, risk.basis) for risk in found[:SEEN]} == {(None, "unknown", "baseline")}
    assert found[SEEN].score is not None


def test_or_the_prior_scores_until_then(runs):
    found = assess(baseline(until=PriorRisk(0.7)), runs(SEEN + 1)[0])
    assert {risk.basis for risk in found[:SEEN]} == {"prior"}
    assert found[SEEN].basis == "baseline"


def test_the_alert_rate_holds_and_bad_runs_rank_higher(runs):
    model = baseline()
    assess(model, runs(WINDOW, seed=1)[0])
    features, bad = runs(2000, seed=2)
    found = assess(model, features)
    assert np.mean([risk.level == "high" for risk in found]) == pytest.approx(0.05, abs=0.02)
    medium = max(0.3, np.mean([PriorRisk(0.7).assess(one, HEALTHY, ADMITTED).level != "low" for one in features]))
    assert np.mean([risk.level != "low" for risk in found]) == pytest.approx(medium, abs=0.05)
    score = np.array([risk.score for risk in found])
    assert (score[bad][:, None] > score[~bad]).mean() > 0.75
    assert not any(risk.shifted for risk in found)


def test_factors_name_what_is_unusual(runs):
    model = baseline()
    features = runs(WINDOW)[0]
    assess(model, features)
    odd = dataclasses.replace(features[0], entropy_max=99.0, surprisal_sum=5000.0)
    (risk,) = assess(model, [odd])
    assert "entropy peak 99 bits (above 99% of this model's requests)" in risk.factors
    assert "total surprisal 5000 bits (above 99% of this model's requests)" in risk.factors


def test_models_and_temperatures_are_separate(runs):
    model = baseline()
    features = runs(SEEN + 1)[0]
    assess(model, features)
    for changes in ({"model": "other"}, {"temperature": 0.0}, {"temperature": 1.5}):
        assert assess(model, features[:1], **changes)[0].score is None
    assert assess(model, features[:1], temperature=None)[0].score is not None, "the default is 1"


def test_faulty_and_empty_requests_teach_nothing(runs):
    model = baseline()
    features = runs(SEEN + 50)[0]
    assess(model, features, Health(nan_detected=True))
    assess(model, [dataclasses.replace(one, tokens=0) for one in features])
    assert assess(model, features[:1])[0].score is None
    assess(model, features, Health(truncated=True))  # many services cut every answer short
    assert assess(model, features[:1])[0].score is not None


def test_a_shift_is_flagged_and_then_becomes_the_reference(runs):
    model = baseline()
    assess(model, runs(WINDOW, seed=1)[0])
    later = runs(2 * SEEN + 200, seed=2, shift=1.0)[0]
    found = assess(model, later)
    shifted = np.array([risk.shifted for risk in found])
    first = int(shifted.argmax())
    assert shifted.any()
    assert first <= 2 * RECENT
    assert 200 <= shifted.sum() <= SEEN + 100, "a shift that lasts is the new usual"
    assert not shifted[-100:].any()
    high = np.array([risk.level == "high" for risk in found])
    assert high[shifted].mean() > 0.5
    prior = [PriorRisk(0.7).assess(one, HEALTHY, ADMITTED).level == "high" for one in later]
    assert high[-100:].mean() == pytest.approx(max(0.05, np.mean(prior)), abs=0.1), "or what the prior calls high"


@pytest.mark.parametrize("poison", [SEEN, SEEN - 100])
def test_a_poisoned_start_is_forgotten(runs, poison):
    """The first requests are garbage of the worst kind; good ones must still be ranked afterwards, and alarmed on."""
    model = baseline()
    assess(model, runs(poison, seed=3, shift=3.0)[0])
    assess(model, runs(WINDOW + 200, seed=4)[0])
    features, bad = runs(500, seed=5)
    found = assess(model, features)
    assert np.mean([risk.level == "high" for risk in found]) == pytest.approx(0.05, abs=0.03)
    score = np.array([risk.score for risk in found])
    assert (score[bad][:, None] > score[~bad]).mean() > 0.75


def test_ordinary_traffic_does_not_shift(runs):
    model = baseline()
    assert sum(risk.shifted for seed in range(10) for risk in assess(model, runs(1000, seed=seed)[0])) == 0


def test_learned_traffic_survives_a_restart(runs):
    kept = []
    model = baseline(learned=lambda *row: kept.append(row))
    features = runs(SEEN + 200)[0]
    assess(model, features)
    again = baseline()
    again.remember(kept)
    others = runs(50, seed=9)[0]
    assert [risk.score for risk in assess(again, others)] == [risk.score for risk in assess(model, others)]


def test_missing_signals_are_left_out_and_ties_count_half(runs):
    features = [dataclasses.replace(one, surprisal_mean=None, entropy_max=None) for one in runs(400)[0]]
    found = scores(Reference.of(Runs.of_features(features)), Runs.of_features(features))
    assert np.isfinite(found).all()
    same = Runs.of_features([features[0]] * 400)
    assert set(scores(Reference.of(same), same)) == {0.5}


def test_samples_of_traffic_differ_if_one_signal_does(runs):
    first, second = (np.array([signals(one) for one in runs(400, seed=seed)[0]]) for seed in (1, 2))
    assert not differ(first, second)
    second[:, 2] *= 2
    assert differ(first, second)
    second[:, 2] = np.nan
    assert not differ(first, second)


def test_tasks_that_come_in_blocks_are_not_a_shift(runs):
    """Three tasks, with different entropies, one after another; then one that is unlike all of them."""
    model = baseline()
    tasks = {shift: iter(runs(2000, seed=int(10 * shift) + 3, shift=shift)[0]) for shift in (0.0, 0.3, 0.6)}
    order = [shift for _ in range(6) for shift in (0.0, 0.6, 0.3)]
    found = [assess(model, [next(tasks[shift]) for _ in range(100)]) for shift in order]
    later = [risk.shifted for block in found[6:] for risk in block]
    assert np.mean(later) <= 0.1
    broken = assess(model, runs(300, seed=9, shift=2.0)[0])
    assert any(risk.shifted for risk in broken)


def test_bad_traffic_is_not_usual_because_most_of_it_is_bad(runs):
    """By the prior nearly all are high: then the baseline may not call but one in twenty high."""
    model = baseline(until=PriorRisk(0.7))
    bad = [
        dataclasses.replace(
            one,
            entropy_mean=6.0,
            entropy_sum=6.0 * one.tokens,
            surprisal_mean=6.0,
            surprisal_sum=6.0 * one.tokens,
            entropy_max=11.0,
        )
        for one in runs(SEEN + 200)[0]
    ]
    found = assess(model, bad)
    assert {risk.basis for risk in found[:SEEN]} == {"prior"}
    assert {risk.basis for risk in found[SEEN:]} == {"baseline"}
    assert np.mean([risk.level == "high" for risk in found[SEEN:]]) > 0.9


def test_the_start_is_on_the_same_scale_as_what_follows(runs):
    """A cold start mixes the prior's scores with the baseline's: together they rank as well as either."""
    model = baseline(until=PriorRisk(0.7))
    features, bad = runs(2 * SEEN, seed=8, shift=0.5)
    score = np.array([risk.score for risk in assess(model, features)])

    def auroc(which):
        return (score[which][bad[which]][:, None] > score[which][~bad[which]]).mean()

    parts = [auroc(slice(0, SEEN)), auroc(slice(SEEN, None))]
    assert auroc(slice(None)) > min(parts) - 0.01
