"""Fitted on labels: the score is a probability, its factors are its reasons, and a damaged profile is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corevital.frames.lifecycle import Admitted
from corevital_otel.calibration.evaluation import evaluate
from corevital_otel.calibration.fitting import FitError, fit
from corevital_otel.report import Features, Health
from corevital_otel.risk.bases import profile_of, watch_of
from corevital_otel.risk.calibrated import CalibratedRisk, Curve, ProfileError, load
from corevital_otel.risk.directions import DIRECTIONS
from corevital_otel.risk.table import Runs, scores
from corevital_otel.settings import Settings


@pytest.fixture(scope="module")
def fitted(runs):
    features, bad = runs(400, seed=1)
    return fit(Runs.of_features(features), bad, label="bad")


def test_new_runs_are_ranked_and_calibrated(fitted, runs):
    features, bad = runs(3000, seed=2)
    found = evaluate(scores(fitted, Runs.of_features(features)), bad).overall
    assert found.auroc > 0.8
    assert found.ece < 0.05
    assert found.brier_skill > 0.15


@pytest.mark.slow
def test_with_many_runs_the_curve_is_isotonic(runs):
    features, bad = runs(2500, seed=3)
    profile = fit(Runs.of_features(features), bad)
    assert profile.isotonic is not None
    features, bad = runs(3000, seed=2)
    assert evaluate(scores(profile, Runs.of_features(features)), bad).overall.ece < 0.05


def test_the_same_seed_gives_the_same_profile(fitted, runs):
    features, bad = runs(400, seed=1)
    assert fit(Runs.of_features(features), bad, label="bad") == fitted


def test_a_profile_survives_its_file(fitted, tmp_path):
    fitted.save(tmp_path / "p.json")
    assert load(tmp_path / "p.json") == fitted
    assert (tmp_path / "p.json").stat().st_size < 50_000
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_a_profile_of_an_older_version_names_no_origin_and_is_used_anywhere(fitted, tmp_path, runs, logged):
    fitted.save(tmp_path / "p.json")
    saved = json.loads((tmp_path / "p.json").read_text())
    del saved["engines"], saved["stages"]
    (tmp_path / "p.json").write_text(json.dumps(saved))
    profile = load(tmp_path / "p.json")
    assert (profile, profile.origin()) == (fitted, "")
    assert CalibratedRisk(profile, 0.7).assess(runs(1)[0][0], Health(), origin("tgi", "post_penalty")).score is not None
    assert logged() == []


def test_no_weight_is_against_the_known_direction(runs):
    for seed in range(6):
        features, bad = runs(60, seed=seed)
        noise = np.random.default_rng(seed).random(60) < 0.5
        for labels in (bad, noise, ~bad):  # the last one asks for weights that all point the other way
            profile = fit(Runs.of_features(features), labels)
            assert all(term.coefficient * DIRECTIONS.get(term.name, 0) >= 0 for term in profile.terms)
            assert not profile.weaknesses()


def test_a_typical_value_is_never_a_reason(runs):
    features, bad = runs(400, seed=1)
    features = [dataclasses.replace(one, high_entropy_run=9 * int(one.entropy_mean > 1.2)) for one in features]
    profile = fit(Runs.of_features(features), bad)
    (term,) = (term for term in profile.terms if term.name == "high_entropy_run")
    assert term.typical == term.deviation(term.typical) == 0.0
    for one in features:
        if one.high_entropy_run == 0:
            factors = CalibratedRisk(profile, 0.7).assess(one, Health(), None).factors
            assert not any("high-entropy steps in a row" in factor for factor in factors)


def test_a_feature_at_its_bound_in_many_runs_is_left_out(runs):
    features, bad = runs(400, seed=1)
    tied = [dataclasses.replace(one, margin_min=0.0 if i % 3 else one.margin_min) for i, one in enumerate(features)]
    assert "margin_min" not in [term.name for term in fit(Runs.of_features(tied), bad).terms]
    assert "margin_min" in [term.name for term in fit(Runs.of_features(features), bad).terms]


def test_a_profile_with_what_is_no_longer_fitted_is_read_and_named(fitted, tmp_path, runs, logged):
    fitted.save(tmp_path / "p.json")
    saved = json.loads((tmp_path / "p.json").read_text())
    next(term for term in saved["terms"] if term["name"] == "entropy_max")["coefficient"] = -0.6
    saved["alarm"] = {"signal": "margin_min", "good": [-0.1, *[-0.0] * 50]}
    (tmp_path / "p.json").write_text(json.dumps(saved))
    settings = Settings(profile=tmp_path / "p.json")
    profile = profile_of(settings)
    (line,) = [record.getMessage() for record in logged()]
    assert "weights against the known direction of entropy_max and an alarm on margin_min that can never" in line
    assert "fit it again with `corevital calibrate`" in line
    assert watch_of(settings, profile) is None
    calm = dataclasses.replace(runs(1)[0][0], entropy_max=0.1)
    assert profile.score(calm) is not None
    assert not any(
        "entropy peak" in factor for factor in CalibratedRisk(profile, 0.7).assess(calm, Health(), None).factors
    )


def origin(engine, stage):
    return Admitted(
        request_id="r", engine_id="e", sequence=0, operation="chat", model="m", arrival_ns=1, prompt_tokens=1,
        engine=engine, stage=stage,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "stage", "named"),
    [
        ("vllm", "raw", None),
        ("vllm", "unknown", None),
        ("vllm", "post_penalty", "used on vllm, stage post_penalty"),
        ("sglang", "raw", "used on sglang, stage raw"),
        ("sglang", "pre_grammar", "used on sglang, stage pre_grammar"),
    ],
)
def test_another_engine_or_stage_is_accepted_with_one_warning(fitted, runs, logged, tmp_path, engine, stage, named):
    dataclasses.replace(fitted, engines=("vllm",), stages=("raw",)).save(tmp_path / "p.json")
    model = CalibratedRisk(load(tmp_path / "p.json"), 0.7)
    plain = CalibratedRisk(fitted, 0.7)
    for features in runs(5, seed=6)[0]:
        risk = model.assess(features, Health(), origin(engine, stage))
        assert risk == plain.assess(features, Health(), origin(engine, stage)), "accepted: the score is the same"
    messages = [record.getMessage() for record in logged()]
    assert len(messages) == (named is not None)
    if named:
        assert "fitted on vllm, stage raw" in messages[0]
        assert named in messages[0]
        assert "\n" not in messages[0]


def test_factors_are_the_contributions_strongest_first(fitted, runs):
    model = CalibratedRisk(fitted, 0.7)
    for features in runs(50, seed=4)[0]:
        risk = model.assess(features, Health(), None)
        found = fitted.contributions(features)
        rest = [0.0] if len(found) == len(fitted.terms) else None
        assert rest is not None
        assert fitted.probability(fitted.intercept + sum(part for part, _, _ in found)) == pytest.approx(risk.score)
        strongest = sorted((part for part, _, _ in found if part >= 0.1), reverse=True)
        assert len(risk.factors) == min(len(strongest), 5)
        assert all(re.search(r"\(typically [-\d.e,]+\)$", factor) for factor in risk.factors)
    assert model.assess(Features(), Health(), None).level == "unknown"


def test_a_missing_feature_counts_as_typical(fitted, runs):
    (features,) = runs(1, seed=5)[0]
    without = dataclasses.replace(features, entropy_max=None)
    typical = next(term.typical for term in fitted.terms if term.name == "entropy_max")
    assert fitted.score(without) == pytest.approx(fitted.score(dataclasses.replace(features, entropy_max=typical)))


def test_far_outside_it_does_not_run_away(fitted, runs):
    (features,) = runs(1, seed=5)[0]
    wild = dataclasses.replace(features, entropy_sum=1e30, entropy_max=1e30, margin_min=1e30)
    assert 0.0 < fitted.score(wild) < 1.0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(points=st.dictionaries(st.integers(-50, 50), st.floats(-3, 3), min_size=1, max_size=9), at=st.floats(-60, 60))
def test_a_curve_is_linear_interpolation(points, at):
    x, y = zip(*sorted(points.items()), strict=True)
    assert Curve(x, y)(at) == pytest.approx(np.interp(at, x, y), abs=1e-9)


def test_noise_gives_the_base_rate(runs):
    features, _ = runs(300, seed=6)
    bad = np.random.default_rng(0).random(300) < 0.3
    profile = fit(Runs.of_features(features), bad)
    found = scores(profile, Runs.of_features(runs(500, seed=7)[0]))
    assert found.mean() == pytest.approx(bad.mean(), abs=0.08)
    assert found.std() < 0.15


@pytest.mark.parametrize(
    ("count", "bad_share", "expected"),
    [(300, 0.0, "all 300 labelled runs are good"), (300, 1.0, "all 300 labelled runs are bad"), (40, 0.3, "too few"),
     (300, 0.01, "too few")],
)  # fmt: skip
def test_labels_that_teach_nothing(runs, count, bad_share, expected):
    features, bad = runs(count, bad_share=bad_share)
    with pytest.raises(FitError, match=expected):
        fit(Runs.of_features(features), bad)


def test_features_that_teach_nothing():
    same = Runs.of_features([Features(tokens=3, entropy_mean=1.0)] * 100)
    with pytest.raises(FitError, match="every feature is constant"):
        fit(same, np.arange(100) % 2 == 0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda found: found.update(version=99), "has version 99, this corevital reads 1"),
        (lambda found: found.update(format="other"), "is not a corevital profile"),
        (lambda found: found["terms"][0].update(name="hidden_state_norm"), "other features.*hidden_state_norm"),
        (lambda found: found["terms"][0].update(coefficient="much"), "damaged"),
        (lambda found: found["terms"][0].update(scale=0), "damaged"),
        (lambda found: found.pop("terms"), "damaged"),
        (lambda found: found.pop("beta"), "damaged"),
        (lambda found: found["terms"][0].pop("quantiles"), "damaged"),
        (lambda found: found["alarm"].update(more=1), "damaged"),
        (lambda found: found.update({"x" * 100_000: 1}), "damaged"),
        (lambda found: found.update(label="\ud800"), "damaged"),
        (lambda found: found.update(terms=[]), "damaged"),
        (lambda found: found.update(intercept=float("nan")), "damaged"),
        (lambda found: found.update(more=1), "damaged"),
        (lambda found: found["alarm"].update(signal="mood"), "damaged"),
        (lambda found: found["alarm"].update(good=[2.0, 1.0]), "damaged"),
        (lambda found: found["alarm"].update(good=[1.0, float("nan")]), "damaged"),
        (lambda found: found.update(alarm={}), "damaged"),
        (lambda found: found.update(alarm=0), "damaged"),
        (lambda found: found.update(intercept=10**400), "damaged"),
        (lambda found: found.update(beta=[-1.0, 1.0, 0.0]), "damaged"),
        (lambda found: found.update(isotonic={"x": [0, 1], "y": [-3, 9]}), "damaged"),
        (lambda found: found.update(isotonic={"x": [0, 1], "y": [0.5]}), "damaged"),
        (lambda found: found.update(isotonic={"x": [0, 1], "y": [0.5, float("nan")]}), "damaged"),
        (lambda found: found["terms"][0].update(quantiles={"x": [0, 0], "y": [0, 1]}), "damaged"),
        (lambda found: found["terms"][0].update(name=None), r"damaged \(terms\.0\.name: "),
        (lambda found: found["terms"][0].update(name=["entropy_mean"]), "damaged"),
    ],
)
def test_a_wrong_profile_is_refused_in_one_line(fitted, tmp_path, change, expected):
    path = tmp_path / "p.json"
    fitted.save(path)
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(ProfileError, match=expected) as raised:
        load(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400
    assert "corevital calibrate" in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", pytest.param("[" * 100_000, id="deep")])
def test_a_file_that_is_not_a_profile_is_refused(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ProfileError):
        load(tmp_path / "p.json")
    with pytest.raises(ProfileError, match="cannot be read"):
        load(tmp_path / "other.json")
