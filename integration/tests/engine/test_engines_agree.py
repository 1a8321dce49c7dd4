"""One truth: transformers and vLLM's V1 give the same numbers; and a difference is not overlooked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.engines_agree.asks import PENALTIES, STORE, Answer, answers, asks
from integration.engines_agree.compare import Pair, pairs, table
from integration.engines_agree.runners import ENGINES

from corevital_otel.report import Series

VALUES = np.linspace(0.1, 0.9, 8, dtype=np.float32)
SERIES = Series(entropy=VALUES, surprisal=VALUES, margin=VALUES, topk_mass=VALUES)


@pytest.mark.engine
@pytest.mark.timeout(240)
def test_transformers_and_v1_agree_token_by_token(tmp_path: Path) -> None:
    asked = [ask for ask in asks(each=1, max_tokens=12) if ask.penalty == 1]
    found = {}
    for engine in ENGINES:
        if engine.name in ("vLLM V1", "transformers"):
            folder = tmp_path / engine.name
            folder.mkdir()
            found[engine.name] = answers(folder / STORE, asked, engine.run(folder, asked))
    assert len(found) == 2
    plain, _ = pairs(found)
    assert plain.tokens > 3 * len(asked)
    assert plain.agrees, table(found, {})


def answer(
    stage: str = "raw", penalty: float = 1.0, tokens: tuple[int, ...] = tuple(range(8)), **changes: Any
) -> Answer:
    return Answer(penalty, list(tokens), dataclasses.replace(SERIES, **changes), stage, "1.0")


def pair(one: Answer, other: Answer) -> Pair:
    found: Mapping[str, list[Answer]] = {"one": [one], "other": [other]}
    return next(pair for pair in pairs(found) if pair.penalty == one.penalty)


@pytest.mark.parametrize("name", ["entropy", "surprisal", "margin"])
def test_a_difference_in_one_value_of_one_token_is_found(name: str) -> None:
    changed = VALUES.copy()
    changed[5] += 0.0011
    other: dict[str, Any] = {name: changed}
    found = pair(answer(), answer(**other))
    assert not found.agrees
    assert {key for key, value in found.furthest.items() if value > 1e-3} == {name}
    assert any("**1.1e-03**" in line for line in table({"one": [answer()], "other": [answer(**other)]}, {}))


def test_missing_values_and_other_tokens_do_not_agree() -> None:
    assert pair(answer(), answer()).agrees
    unknown = VALUES.copy()
    unknown[0] = math.nan
    assert not pair(answer(), answer(margin=unknown)).agrees
    assert not pair(answer(), answer()._replace(series=None)).agrees
    other = pair(answer(), answer(tokens=(0, 1, 2, 9, 9, 9, 9, 9)))
    assert (other.agrees, other.other_tokens, other.tokens) == (False, 1, 3)


def test_only_stages_of_the_same_logits_are_compared() -> None:
    far = VALUES + 1
    assert not pair(answer("raw"), answer("post_penalty", entropy=far)).agrees, "without a penalty they are the same"
    penalty = PENALTIES[-1]
    raw, late = answer("raw", penalty), answer("post_penalty", penalty, entropy=far)
    assert pair(raw, late) == Pair("one", "other", penalty, 0, 0, {})
    assert pair(answer("pre_grammar", penalty), late).tokens == 0
    assert not pair(answer("post_penalty", penalty), late).agrees
