"""Whether a running output is in a loop, asked every few tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from corevital_otel.measure import loops
from corevital_otel.measure.loop_check import EVERY, LoopCheck

TEXTS = json.loads((Path(__file__).parent / "texts.json").read_text())


def stopped_at(tokens: list[int], least_span: int = loops.LEAST_SPAN) -> int | None:
    """Tokens made when an engine would end the output; None: it runs to its end."""
    check = LoopCheck(least_span)
    for made in range(1, len(tokens) + 1):
        if made >= check.due and check.looping(tokens[:made]):
            return made
    return None


def text(n: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, 50_000, n).tolist()
    return found


@pytest.mark.parametrize("period", [1, 2, 3, 7, 16, 30, 100, 300, 511])
@pytest.mark.parametrize("onset", [0, 1, 40, 777])
def test_a_loop_is_found_within_sixteen_tokens_of_the_first_that_can_be(period: int, onset: int) -> None:
    tokens = [*text(onset), *(text(period, 1) * (4 * loops.HISTORY // period))]
    found = loops.find(np.array(tokens, np.int32))
    assert found is not None
    made = stopped_at(tokens)
    assert made is not None
    assert 0 <= made - found.fired_at <= EVERY


def test_text_that_does_not_repeat_is_left_alone() -> None:
    assert stopped_at(text(4000)) is None
    assert stopped_at(list(range(3000))) is None


def test_a_refrain_that_has_ended_is_left_alone() -> None:
    refrain = text(12, 2)
    assert stopped_at([*text(100), *refrain, *text(200, 3), *refrain, *text(200, 4), *refrain, *text(100, 5)]) is None


def test_a_table_is_left_alone_and_looked_at_more_rarely() -> None:
    head = text(10, 6)
    table = [token for row in range(200) for token in (*head, *text(8, 100 + row))]
    assert stopped_at(table) is None


def test_the_setting_decides_what_is_long_enough() -> None:
    tokens = [*text(30), *(text(4, 1) * 30)]
    early, late = stopped_at(tokens, 12), stopped_at(tokens, 96)
    assert early is not None
    assert late is not None
    assert early < late


def test_legitimate_texts_are_ended_only_where_they_repeat_a_line_over_and_over():
    ended = {name for name, tokens in TEXTS["legitimate"].items() if stopped_at(tokens)}
    assert len(TEXTS["legitimate"]) >= 44
    assert ended <= {"HTML empty cells", "a line 20 times", "cheers", "zeros"}


def test_loops_of_written_texts_are_ended_before_they_are_long():
    for kind in ("exact", "long"):
        for opening, part in TEXTS[kind]:
            made = stopped_at([*opening, *(part * 60)])
            assert made is not None
            assert made <= len(opening) + max(4 * len(part), loops.LEAST_SPAN + len(part) + 2 * EVERY)
    near = [stopped_at(tokens) is not None for tokens in TEXTS["near"].values()]
    assert np.mean(near) >= 0.7
