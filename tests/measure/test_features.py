"""Streaming or whole: the same features, and the ones their definitions give."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corevital.frames.layout import ROW
from corevital_otel.measure import features, token_values
from corevital_otel.report import Features, Series

VALUES = hnp.arrays(
    np.float64,
    st.tuples(st.just(token_values.COLUMNS), st.integers(1, 80)),
    elements=st.one_of(st.floats(0, 40, allow_subnormal=False), st.just(math.nan)),
)


def chunk(values: np.ndarray) -> token_values.Chunk:
    """One sequence's values, all observed."""
    n = values.shape[1]
    no = np.zeros(1, bool)
    return token_values.Chunk(values[:, None], np.ones((1, n), bool), np.zeros((1, n), bool), no, no, top(values)[None])


def top(values: np.ndarray) -> np.ndarray:
    """Likeliest tokens: mostly the same."""
    return np.where(np.isnan(values[token_values.MARGIN]), 1, 0)


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
        assert found.entropy_bursts == sum(b - a >= 2.0 for a, b in pairwise(entropy.tolist()))
    if known.sum() > 1:
        x, y = n[known] - n[known].mean(), entropy[known]
        assert found.entropy_slope == pytest.approx(x @ y / (x @ x), abs=1e-9)
    if np.isfinite(surprisal).any():
        assert found.perplexity == pytest.approx(2 ** np.nanmean(surprisal))
        assert found.surprisal_max == np.nanmax(surprisal)
        assert found.surprisal_std == pytest.approx(np.nanstd(surprisal), abs=1e-9)
    if np.isfinite(margin).any():
        assert found.margin_min == np.nanmin(margin)
    if np.isfinite(mass).any():
        assert found.topk_mass_mean == pytest.approx(np.nanmean(mass))
    lowest, highest = min(group_means(confidence), default=None), max(group_means(entropy), default=None)
    assert found.confidence_min == (lowest if lowest is None else pytest.approx(lowest, abs=1e-7))
    assert found.entropy_group_max == (highest if highest is None else pytest.approx(highest, abs=1e-7))
    assert np.fmax.reduce(features.group_means(entropy), initial=-np.inf) == pytest.approx(
        -np.inf if highest is None else highest, abs=1e-7
    )
    if means := groups_in(entropy):
        rises = [mean - min(means[: i + 1]) for i, mean in enumerate(means)]
        assert found.entropy_rebound == pytest.approx(max(rises), abs=1e-7)
    else:
        assert found.entropy_rebound is None
    first, last = values[:, : features.GROUP], values[:, -features.GROUP :]
    assert found.entropy_early == mean(first[token_values.ENTROPY])
    assert found.surprisal_early == mean(first[token_values.SURPRISAL])
    assert found.margin_early == mean(first[token_values.MARGIN])
    assert found.confidence_early == mean(first[token_values.CONFIDENCE])
    assert found.confidence_tail == mean(last[token_values.CONFIDENCE])
    for change, column in (
        (found.entropy_change, token_values.ENTROPY),
        (found.confidence_change, token_values.CONFIDENCE),
    ):
        early, late = mean(first[column]), mean(last[column])
        assert change == (
            None if early is None or late is None else pytest.approx(late.expected - early.expected, abs=1e-7)
        )
    assert (found.high_entropy_run, found.frozen_run) == runs(entropy.tolist(), top(values).tolist())


def mean(values: np.ndarray):
    return pytest.approx(np.nanmean(values), abs=1e-7) if np.isfinite(values).any() else None


def groups_in(values: np.ndarray) -> list[float]:
    """Means of whole groups of which twelve are known."""
    groups = [values[i : i + features.GROUP] for i in range(len(values) - features.GROUP + 1)]
    return [np.nanmean(group) for group in groups if np.isfinite(group).sum() >= 12]


def group_means(values: np.ndarray) -> list[float]:
    known = np.isfinite(values)
    return groups_in(values) or ([np.nanmean(values)] if 0 < known.sum() < features.GROUP else [])


def runs(entropy: list[float], top: list[int]) -> tuple[int, int]:
    """The longest run of high entropy, and of tokens with the distribution of the one before; one token at a time."""
    high = frozen = 0
    longest = [0, 0]
    before = (math.nan, -1)
    for now in zip(entropy, top, strict=True):
        if not math.isnan(now[0]):
            high = high + 1 if now[0] > 4.0 else max(high - 2, 0)
        frozen = frozen + 1 if abs(now[0] - before[0]) <= 0.01 and now[1] == before[1] else 0
        longest = [max(longest[0], high), max(longest[1], frozen)]
        before = now
    return longest[0], longest[1]


def test_a_long_flat_series_keeps_its_small_spread():
    rng = np.random.default_rng(0)
    values = np.full((token_values.COLUMNS, 100_000), 0.5)
    values[token_values.ENTROPY] = (
        17.0 + 1e-6 * rng.standard_normal(values.shape[1]) + 1e-9 * np.arange(values.shape[1])
    )
    found = streamed(values, list(range(32, 100_000, 32)))
    assert found.entropy_std == pytest.approx(values[token_values.ENTROPY].std(), rel=1e-6)
    assert found.entropy_slope == pytest.approx(np.polyfit(np.arange(100_000), values[0] - 17.0, 1)[0], rel=1e-4)


def test_nothing_seen():
    assert features.summaries(features.initial(1)) == [Features()]


def test_an_absurd_surprisal_has_a_finite_perplexity():
    values = np.full((token_values.COLUMNS, 3), 1e6)
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
    found = token_values.measure(
        row, np.ones((1, 1), bool), np.array([[token]], np.int32), np.array([[logprob]], np.float32)
    )
    return found.values[token_values.SURPRISAL, 0, 0] * math.log(2), bool(found.estimated[0, 0])


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
    found = token_values.measure(row, np.ones((1, 1), bool), np.array([[55]], np.int32), np.array([[-1.0]], np.float32))
    assert np.isnan(found.values).all()
    assert found.observed.all()
    assert not found.estimated.any()


def test_confidence_leaves_masked_tokens_out(row):
    row["topk_logprobs"][0, 0, 4:] = -math.inf
    found = token_values.measure(row, np.ones((1, 1), bool), np.array([[-1]], np.int32), np.array([[-1.0]], np.float32))
    assert found.values[token_values.CONFIDENCE, 0, 0] == pytest.approx(-math.log(0.04) + 1.5e-3)


SERIES = {"entropy": 0, "surprisal": 1, "margin": 2, "topk_mass": 3}
NOT_IN_A_SERIES = {name for name in Features.__dataclass_fields__ if name.startswith("confidence_")} | {"frozen_run"}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values=hnp.arrays(np.float32, st.tuples(st.just(5), st.integers(0, 200)), elements=st.floats(0, 20, width=32)))
def test_a_stored_series_gives_the_same_as_live(values):
    series = Series(**{name: values[at] for name, at in SERIES.items()})
    stored, live = features.of_series(series), streamed(values.astype(float), [32, 64])
    for name in set(Features.__dataclass_fields__) - NOT_IN_A_SERIES:
        wanted = getattr(live, name)
        assert getattr(stored, name) == (None if wanted is None else pytest.approx(wanted, rel=1e-6, abs=1e-6)), name
    assert stored.confidence_mean is stored.confidence_tail is None


def test_a_distribution_that_stands_still_is_seen_and_a_sure_one_that_moves_on_is_not():
    values = np.zeros((token_values.COLUMNS, 100))
    no = np.zeros(1, bool)
    for tops, wanted in ((np.zeros(100, int), 99), (np.arange(100), 0), (np.arange(100) // 10, 9)):
        state = features.initial(1)
        whole = np.ones((1, 100), bool)
        features.fold(state, np.array([0]), token_values.Chunk(values[:, None], whole, ~whole, no, no, tops[None]))
        assert features.summaries(state)[0].frozen_run == wanted


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values=VALUES, data=st.data(), peak=st.integers(0, 4))
def test_an_alarm_is_raised_where_the_running_maximum_crosses(values, data, peak):
    name = features.PEAKS[peak]
    threshold = data.draw(st.floats(-20, 20))
    cuts = data.draw(st.lists(st.integers(1, values.shape[1]), max_size=3))
    watch = features.Watch(peak, threshold)
    state, at = features.initial(1), 0
    for end in [*sorted(set(cuts) - {values.shape[1]}), values.shape[1]]:
        features.fold(state, np.array([at]), chunk(values[:, at:end]), watch=watch)
        at = end
    maxima = []
    for end in range(1, values.shape[1] + 1):
        prefix = features.initial(1)
        features.fold(prefix, np.array([0]), chunk(values[:, :end]))
        maxima.append(prefix["peaks"][0, peak])
    over = [i for i, value in enumerate(maxima) if value > threshold + 1e-9]
    under = [i for i, value in enumerate(maxima) if value <= threshold - 1e-9]
    onset = int(state["alarmed_at"][0])
    if over and len(over) + len(under) == len(maxima):
        assert onset == over[0], name
    elif len(under) == len(maxima):
        assert onset == -1, name
