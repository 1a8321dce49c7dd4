"""Streaming or whole: the same features, and the ones their definitions give."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corevital.frames.record import ROW
from corevital_otel import features
from corevital_otel.report import Features

VALUES = hnp.arrays(
    np.float64,
    st.tuples(st.just(features.COLUMNS), st.integers(1, 80)),
    elements=st.one_of(st.floats(0, 40, allow_subnormal=False), st.just(math.nan)),
)


def chunk(values: np.ndarray) -> features.Chunk:
    """One sequence's values, all observed."""
    n = values.shape[1]
    no = np.zeros(1, bool)
    return features.Chunk(values[:, None], np.ones((1, n), bool), np.zeros((1, n), bool), no, no)


def streamed(values: np.ndarray, cuts: list[int]) -> Features:
    state = features.initial(1)
    at = 0
    for end in [*sorted(cuts), values.shape[1]]:
        if end > at:
            features.fold(state, np.array([at]), chunk(values[:, at:end]))
            at = end
    return features.summaries(state)[0]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values=VALUES, data=st.data())
def test_any_split_gives_the_same(values, data):
    n = values.shape[1]
    cuts = data.draw(st.lists(st.integers(0, n), max_size=6))
    whole, parts = streamed(values, []), streamed(values, cuts)
    for name in Features.__dataclass_fields__:
        wanted = getattr(whole, name)
        assert getattr(parts, name) == (None if wanted is None else pytest.approx(wanted, rel=1e-7, abs=1e-7)), name


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values=VALUES)
def test_whole_is_what_the_definitions_say(values):
    found = streamed(values, [])
    entropy, surprisal, margin, mass, confidence = values
    n = np.arange(len(entropy))
    known = np.isfinite(entropy)
    assert found.tokens == len(n)
    assert found.high_entropy_steps == sum(value > 4.0 for value in entropy)
    if not known.any():
        assert found.entropy_mean is found.entropy_std is found.entropy_slope is None
    else:
        assert found.entropy_mean == pytest.approx(np.nanmean(entropy))
        assert found.entropy_std == pytest.approx(np.nanstd(entropy), abs=1e-9)
        assert found.entropy_sum == pytest.approx(np.nansum(entropy))
        assert found.entropy_max == np.nanmax(entropy)
    if known.sum() > 1:
        x, y = n[known] - n[known].mean(), entropy[known]
        assert found.entropy_slope == pytest.approx(x @ y / (x @ x), abs=1e-9)
    if np.isfinite(surprisal).any():
        assert found.perplexity == pytest.approx(2 ** np.nanmean(surprisal))
        assert found.surprisal_max == np.nanmax(surprisal)
    if np.isfinite(margin).any():
        assert found.margin_min == np.nanmin(margin)
    if np.isfinite(mass).any():
        assert found.topk_mass_mean == pytest.approx(np.nanmean(mass))
    groups = [confidence[i : i + features.GROUP] for i in range(len(n) - features.GROUP + 1)] or [confidence]
    means = [np.nanmean(group) for group in groups if np.isfinite(group).any()]
    if means:
        assert found.confidence_min == pytest.approx(min(means), abs=1e-7)
    elif not np.isfinite(confidence).any():
        assert found.confidence_min is None


def test_a_long_flat_series_keeps_its_small_spread():
    rng = np.random.default_rng(0)
    values = np.full((features.COLUMNS, 100_000), 0.5)
    values[features.ENTROPY] = 17.0 + 1e-6 * rng.standard_normal(values.shape[1]) + 1e-9 * np.arange(values.shape[1])
    found = streamed(values, list(range(32, 100_000, 32)))
    assert found.entropy_std == pytest.approx(values[features.ENTROPY].std(), rel=1e-6)
    assert found.entropy_slope == pytest.approx(np.polyfit(np.arange(100_000), values[0] - 17.0, 1)[0], rel=1e-4)


def test_nothing_seen():
    assert features.summaries(features.initial(1)) == [Features()]


def test_an_absurd_surprisal_has_a_finite_perplexity():
    values = np.full((features.COLUMNS, 3), 1e6)
    assert math.isfinite(streamed(values, []).perplexity)


@pytest.fixture
def row() -> np.ndarray:
    """A vocabulary of 60, 10 of them masked, 20 in the table."""
    row = np.zeros((1, 1), ROW)
    row["vocab"], row["neginf_count"] = 60, 10
    row["entropy"] = 3.0
    row["topk_ids"] = np.arange(100, 120)
    row["topk_logprobs"] = np.log(0.04) - np.arange(20) * 1e-3
    return row


def surprisal(row: np.ndarray, token: int, logprob: float = math.nan) -> tuple[float, bool]:
    found = features.measure(
        row, np.ones((1, 1), bool), np.array([[token]], np.int32), np.array([[logprob]], np.float32)
    )
    return found.values[features.SURPRISAL, 0, 0] * math.log(2), bool(found.estimated[0, 0])


def test_surprisal_in_order_of_trust(row):
    assert surprisal(row, 103, -1.5) == (pytest.approx(1.5), False)
    assert surprisal(row, 103) == (pytest.approx(-math.log(0.04) + 3e-3), False)
    tail = (1 - np.exp(row["topk_logprobs"].astype(float)).sum()) / 30
    assert surprisal(row, 55) == (pytest.approx(-math.log(tail)), True)
    assert surprisal(row, -1) == (pytest.approx(3.0), True)


def test_a_token_outside_the_table_is_never_likelier_than_those_in_it(row):
    row["vocab"] = 31  # one token is left for the tail's whole mass
    assert surprisal(row, 55) == (pytest.approx(-math.log(0.04) + 19e-3, rel=1e-5), True)
    row["topk_logprobs"] = math.log(0.05)  # no mass left that float32 can see
    assert math.isfinite(surprisal(row, 55)[0])


def test_a_sure_token_has_no_negative_surprisal(row):
    assert str(surprisal(row, 103, 1e-7)[0]) == "0.0"


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_row_without_entropy_gives_no_values(row, fault):
    row["entropy"] = fault
    found = features.measure(row, np.ones((1, 1), bool), np.array([[55]], np.int32), np.array([[-1.0]], np.float32))
    assert np.isnan(found.values).all()
    assert found.observed.all()
    assert not found.estimated.any()


def test_confidence_leaves_masked_tokens_out(row):
    row["topk_logprobs"][0, 0, 4:] = -math.inf
    found = features.measure(row, np.ones((1, 1), bool), np.array([[-1]], np.int32), np.array([[-1.0]], np.float32))
    assert found.values[features.CONFIDENCE, 0, 0] == pytest.approx(-math.log(0.04) + 1.5e-3)
