"""Loops are found, also imperfect ones; text is not."""

import pydoc_data.topics
import re

import numpy as np
import pytest

from corevital_otel.measure import loops

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


def test_repeated_tokens_are_the_definition():
    tokens = np.random.default_rng(0).integers(-1, 4, 1500)
    found = loops.repeated_at(tokens)
    for i in range(len(tokens)):
        gram = tokens[i - 3 : i + 1].tolist() if i >= 3 else [-1]
        lags = range(1, min(i - 3, loops.LAGS) + 1) if min(gram) >= 0 else ()
        assert found[i] == next((lag for lag in lags if tokens[i - lag - 3 : i - lag + 1].tolist() == gram), 0)


def test_the_share_is_of_128_tokens_or_all():
    assert loops.share(np.array([], int)) is None
    assert loops.share(np.array([0, 1, 1, 0])) == 0.5
    assert loops.share(np.repeat([0, 3, 0], [200, 32, 200])) == 0.25


def test_any_split_gives_the_same(text):
    rng = np.random.default_rng(1)
    for _ in range(50):
        tokens = after_text(text, rng, np.tile(unit_of(text, rng, int(rng.integers(1, 60))), 40)[:300])
        whole, parts = detect(tokens), loops.LoopDetector()
        for part in np.split(tokens, np.sort(rng.integers(0, len(tokens), 12))):
            parts.update(part.tolist())
        assert (whole.period, whole.onset, whole.fired_at) == (parts.period, parts.onset, parts.fired_at)
        assert whole.period


@pytest.mark.parametrize("period", [*range(1, 129), 130, 177, 200, 256, 300, 384, 400, 511, 512])
def test_exact_loops_of_every_period(text, period):
    rng = np.random.default_rng(period)
    unit = rng.permutation(30_000)[:period]  # no shorter period inside
    tokens = after_text(text, rng, np.tile(unit, 3 + 64 // period))
    found = detect(tokens)
    assert found.looping
    assert found.period == period
    assert found.onset in range(90, 101)  # text before may chance to match
    assert found.fired_at - 100 <= max(48, 2 * period) + period, "at the token, not at the next reading"


def rate(text: np.ndarray, kind: str, trials: int = 500) -> float:
    """Share found of loops of 512 tokens after 100 of text."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(trials):
        period = int(rng.integers(4, 65) if kind == "changing" else rng.integers(1, 129))
        loop = np.resize(unit_of(text, rng, period), 512)
        if kind == "jittered":
            noisy = rng.random(len(loop)) < 0.03
            loop[noisy] = rng.choice(text, noisy.sum())
        elif kind == "changing":
            place = slice(int(rng.integers(0, period)), None, period)
            loop[place] = rng.choice(text, len(loop[place]))
        detector = detect(after_text(text, rng, loop))
        # where a token of each period changes it may be a template that was asked for
        hits += (detector.found if kind == "changing" else detector.period) is not None
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


def play(tokens: np.ndarray) -> tuple[np.ndarray, list[bool]]:
    """The live state after whole chunks of a sequence, and whether it was in a loop after each."""
    state = loops.initial(3)
    seen = []
    for first in range(0, len(tokens) - len(tokens) % 32, 32):
        loops.advance(state, np.array([1]), np.array([first]), tokens[None, first : first + 32])
        seen.append(bool(state["looping"][1]))
    assert not state["looping"][[0, 2]].any()
    return state, seen


def test_a_running_loop_is_seen_soon_and_its_end_too(text):
    rng = np.random.default_rng(9)
    late = []
    for period in (*range(1, 40), 64, 128, 300):
        loop = np.resize(unit_of(text, rng, period), max(4 * period, 512))
        tokens = np.concatenate([text[:256], loop, text[1000:1512]])
        _, seen = play(tokens)
        assert not any(seen[:8])
        begun = seen.index(True) * 32 + 32 - 256
        late.append(begun - max(48 + period, 3 * period))
        assert not any(seen[-8:])
    assert np.median(late) <= 128
    assert max(late) <= 256


def test_the_last_tokens_of_a_running_sequence():
    tokens = np.arange(5000, dtype=np.int32)
    for length in (32, 1536, 1568, 4992):
        state, _ = play(tokens[:length])
        assert loops.last_tokens(state[1], length).tolist() == tokens[max(length - loops.HISTORY, 0) : length].tolist()


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


def rows(text: np.ndarray, rng: np.random.Generator, period: int, count: int, field: slice | list[int]) -> np.ndarray:
    """Copies of a part of text, in which a field is new in each."""
    made = np.tile(unit_of(text, rng, period), (count, 1))
    made[:, field] = 40_000 + np.arange(made[:, field].size).reshape(made[:, field].shape)
    return made.ravel()


@pytest.mark.parametrize(
    ("period", "count", "loop", "at_limit"),
    [
        (11, 7, False, False), (30, 5, False, False),
        (6, 15, False, True), (11, 12, False, True), (30, 12, False, True),
        (6, 40, True, True), (11, 40, True, True), (30, 40, True, True),
    ],
)  # fmt: skip
def test_one_field_that_changes(text, period, count, loop, at_limit):
    """Rows that were asked for, a list that the limit ended, and one that never ends."""
    rng = np.random.default_rng(period)
    tokens = after_text(text, rng, rows(text, rng, period, count, slice(0, 1)))
    for cut_off, wanted in ((False, loop), (True, at_limit)):
        found = loops.find(tokens, cut_off=cut_off)
        assert found is not None
        assert (found.period, found.loop) == (period, wanted)
        assert found.onset in range(90, 103)


@pytest.mark.parametrize("count", [5, 40])
def test_columns_that_change_are_a_template(text, count):
    rng = np.random.default_rng(1)
    for period, columns in ((20, [2, 9]), (33, [1, 10, 20]), (14, [3, 4, 5, 6]), (60, [3, 30])):
        tokens = after_text(text, rng, rows(text, rng, period, count, columns))
        for cut_off in (False, True):
            found = loops.find(tokens, cut_off=cut_off)
            assert found is not None
            assert (found.period, found.field, found.loop) == (period, -1 if len(columns) < 4 else 4, False)


def test_a_refrain_is_not_a_loop(text):
    """It repeats for long enough, and then the text goes on."""
    part = np.tile(np.arange(30_000, 30_010), 7)
    assert detect(np.concatenate([text[:100], part])).period == 10
    after = detect(np.concatenate([text[:100], part, text[200:240]]))
    assert after.period is None
    assert after.found.period == 10
