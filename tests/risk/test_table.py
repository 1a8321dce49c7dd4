"""Columns are recognised by the features' names and by the attributes'."""

import numpy as np
import pytest

from corevital_otel.conventions import FEATURES
from corevital_otel.report import Features
from corevital_otel.risk.table import Runs
from corevital_otel.risk.wording import TEXTS, describe


def test_plain_names_attributes_and_what_follows_from_them():
    runs = Runs.of(
        {
            "generated_tokens": ["10", "20"],
            "corevital.entropy.mean": [0.5, None],
            "surprisal_mean": ["0.25", "nan"],
            "entropy_max": ["inf", "3"],
            "other": ["x", "y"],
        }
    )
    assert runs.columns["entropy_sum"][0] == 5.0
    assert runs.columns["surprisal_sum"][0] == 2.5
    first, second = runs
    assert (first.tokens, first.entropy_mean, first.entropy_max) == (10, 0.5, None)
    assert (second.entropy_mean, second.surprisal_sum, second.entropy_max) == (None, None, 3.0)
    assert "margin_min" in runs.missing
    assert "entropy_sum" not in runs.missing
    assert len(runs.take(np.array([True, False]))) == 1


def test_features_come_back_as_they_were():
    features = Features(tokens=5, entropy_mean=0.5, entropy_bursts=2, high_entropy_run=1, margin_min=0.0)
    assert next(iter(Runs.of_features([features]))) == features


def test_every_feature_has_a_text():
    assert set(TEXTS) == set(FEATURES)
    assert describe("entropy_sum", 157.3) == "total entropy 157 bits"
    assert describe("margin_min", 0.00123) == "closest margin 0.00123"
    assert describe("tokens", 12345) == "12345 tokens long"


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_is_one(name):
    assert name in Features.__dataclass_fields__
