"""The text of outputs by the library that engines decode with: the tokens' pieces are the output's text."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.conftest import make_report
from tokenizers import Tokenizer

from corevital_otel.cli.demo import MODEL_DIR
from corevital_otel.counters import Counters
from corevital_otel.report import Likeliest, RequestReport, Risk
from corevital_otel.service.output_texts import OutputTexts
from corevital_otel.store import content

pytestmark = pytest.mark.engine
TEXT = "What is 14 + 21? naïve café 🙂 日本語\n\n35<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


def of(token_ids: list[int], likeliest: Likeliest | None = None) -> RequestReport:
    made = make_report(risk=Risk(score=0.9, level="high"), likeliest=likeliest)
    return dataclasses.replace(made, outcome=dataclasses.replace(made.outcome, token_ids=token_ids))


def test_the_pieces_of_real_tokens_are_the_text(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    found = OutputTexts(Counters(), (str(MODEL_DIR), None)).of(of(token_ids))
    assert found is not None
    assert len(found.tokens) == found.total == len(token_ids)
    assert "".join(found.tokens) == tokenizer.decode(token_ids, skip_special_tokens=False)
    assert "" in found.tokens, "a character of several tokens"
    assert content.unpack(content.pack(found)) == found


def test_ids_without_a_token_lose_nothing_else(tokenizer: Tokenizer) -> None:
    token_ids = [-1, 2**31 - 1, *tokenizer.encode("35", add_special_tokens=False).ids]
    likeliest = Likeliest(
        np.array([[2**31 - 1, token_ids[2], -1]], np.int32), np.array([[-1.0, -2.0, -3.0]], np.float32)
    )
    found = OutputTexts(Counters(), (str(MODEL_DIR), None)).of(of(token_ids, likeliest))
    assert found is not None
    assert found.tokens[:2] == ("", "")
    assert "".join(found.tokens).endswith("35")
    assert [text for text, _ in found.alternatives[0]] == ["", tokenizer.decode([token_ids[2]])]
