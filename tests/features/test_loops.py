"""Loops are found, also imperfect ones; text is not."""

import pydoc_data.topics
import re

import numpy as np
import pytest

from corevital_otel import loops

WORD = re.compile(r" ?\w{1,4}|([^\w\s])\1*|\s+")
"""Pieces of up to four letters, runs of one sign, white space: about as long as a BPE tokenizer's tokens."""


def tokenize(text: str, ids: dict[str, int]) -> np.ndarray:
    return np.array([ids.setdefault(match[0], len(ids)) for match in WORD.finditer(text)], np.int32)


@pytest.fixture(scope="module")
def ids() -> dict[str, int]:
    return {}


@pytest.fixture(scope="module")
def text(ids) -> np.ndarray:
    """The language reference: prose, grammar, lists and code, by people."""
    return tokenize("\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)), ids)


def detect(tokens) -> loops.LoopDetector:
    detector = loops.LoopDetector()
    detector.update(tokens)
    return detector


def after_text(text: np.ndarray, rng: np.random.Generator, loop: np.ndarray, before: int = 100) -> np.ndarray:
    at = rng.integers(0, len(text) - before)
    return np.concatenate([text[at : at + before], loop])


def unit_of(text: np.ndarray, rng: np.random.Generator, period: int) -> np.ndarray:
    at = rng.integers(0, len(text) - period)
    return text[at : at + period].copy()


def reference_scores(tokens: list[int]) -> np.ndarray:
    """The counters, one token and one lag at a time."""
    score = np.zeros(loops.LAGS + 1, int)
    for i in range(len(tokens)):
        for lag in range(1, loops.LAGS + 1):
            match = i >= lag and tokens[i] == tokens[i - lag]
            score[lag] = max(0, score[lag] + (1 if match else -4))
    return score[1:]


def test_counters_are_the_definition():
    tokens = np.random.default_rng(0).integers(0, 3, 64).tolist()
    state = loops.initial(1)
    for at in (0, 8, 32):
        end = {0: 8, 8: 32, 32: 64}[at]
        loops.advance(state, np.array([at]), np.array([tokens[at:end]], np.int32))
    assert state["score"][0, ::-1].tolist() == reference_scores(tokens).tolist()


def test_any_split_gives_the_same(text):
    rng = np.random.default_rng(1)
    for _ in range(50):
        tokens = after_text(text, rng, np.tile(unit_of(text, rng, int(rng.integers(1, 60))), 40)[:300])
        whole, parts = detect(tokens), loops.LoopDetector()
        for part in np.split(tokens, np.sort(rng.integers(0, len(tokens), 12))):
            parts.update(part.tolist())
        assert (whole.period, whole.onset, whole.fired_at) == (parts.period, parts.onset, parts.fired_at)
        assert whole.period


@pytest.mark.parametrize("period", range(1, loops.LAGS + 1))
def test_exact_loops_of_every_period(text, period):
    rng = np.random.default_rng(period)
    unit = rng.permutation(30_000)[:period]  # no shorter period inside
    tokens = after_text(text, rng, np.tile(unit, 4 + 64 // period))
    found = detect(tokens)
    assert found.looping
    assert found.period == period
    assert loops.onset(tokens, period, found.fired_at) in range(90, 101)  # text before may chance to match
    assert abs(found.onset - 100) <= 10


def rate(text: np.ndarray, kind: str, trials: int = 500) -> float:
    """Share found of loops of 512 tokens after 100 of text."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(trials):
        period = int(rng.integers(4, 65) if kind == "changing" else rng.integers(1, loops.LAGS + 1))
        loop = np.resize(unit_of(text, rng, period), 512)
        if kind == "jittered":
            noisy = rng.random(len(loop)) < 0.03
            loop[noisy] = rng.choice(text, noisy.sum())
        elif kind == "changing":
            place = slice(int(rng.integers(0, period)), None, period)
            loop[place] = rng.choice(text, len(loop[place]))
        hits += detect(after_text(text, rng, loop)).period is not None
    return hits / trials


@pytest.mark.parametrize(("kind", "goal"), [("exact", 0.98), ("jittered", 0.90), ("changing", 0.75)])
def test_rates(text, kind, goal):
    assert rate(text, kind) >= goal


@pytest.mark.parametrize("length", [504, 1000, 2000])
def test_text_does_not_loop(text, length):
    parts = [text[at : at + length] for at in range(0, len(text) - length, length)]
    false = sum(detect(part).period is not None for part in parts)
    assert len(parts) >= 40
    assert false <= 0.01 * len(parts)


@pytest.mark.parametrize("seen", [0, 32, 96])
def test_a_search_that_goes_on_finds_what_a_whole_one_does(text, seen):
    """Also where it first looks whether a loop is possible at all."""
    rng = np.random.default_rng(seen)
    found = 0
    for _ in range(150):
        loop = np.tile(unit_of(text, rng, int(rng.integers(1, 40))), 60)[: int(rng.integers(1, 120))]
        tokens = after_text(text, rng, loop, before=int(rng.integers(60, 100)))
        seen = min(seen, len(tokens) // loops.STRIDE * loops.STRIDE)
        state = loops.initial(1)
        loops.advance(state, np.array([0]), tokens[None, :seen])
        before = state.copy()
        whole = detect(tokens)
        wanted = (whole.period, loops.onset(tokens, whole.period, whole.fired_at)) if whole.period else None
        assert loops.find(tokens, state, seen) == wanted
        assert state == before
        found += wanted is not None
    assert 20 < found < 130


@pytest.mark.parametrize("separator", [", ", "\n", " and "])
@pytest.mark.parametrize("start", [0, 90, 1000, 12345])
@pytest.mark.parametrize("by", ["numbers", "digits"])
def test_counting_upwards_does_not_loop(ids, separator, start, by):
    text = separator.join(map(str, range(start, start + 500)))
    pattern = r"\d+|\D+" if by == "numbers" else r"\d|\D+"
    found = detect([ids.setdefault(piece, len(ids)) for piece in re.findall(pattern, text)])
    assert found.period is None


def test_a_recitation_with_a_refrain_does_not_loop(text):
    refrain = text[:60]
    verses = [text[at : at + 90] for at in range(1000, 1000 + 10 * 90, 90)]
    song = np.concatenate([part for verse in verses for part in (verse, refrain)])
    assert detect(song).period is None


@pytest.mark.parametrize(("length", "found"), [(48, False), (64, True)])
def test_one_token_over_and_over(length, found):
    assert (detect([5] * length).period == 1) is found


def test_a_sequence_leaves_its_loop(text):
    detector = detect([5, 6, 7] * 400)
    assert detector.looping
    detector.update(text[:64])
    assert not detector.looping
    assert detector.period == 3


def test_a_long_loop_stays_one(text):
    rng = np.random.default_rng(3)
    detector = loops.LoopDetector()
    unit = unit_of(text, rng, 20)
    seen = []
    for _ in range(200):
        unit[3] = rng.choice(text)
        detector.update(unit)
        seen.append(detector.looping)
    assert np.mean(seen[10:]) > 0.9


def test_unknown_tokens_match_nothing():
    assert detect([-1] * 200).period is None
