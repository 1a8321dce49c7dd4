"""Long clean text, and loops induced in it.

The text is what every installation has: Python's own language reference (``pydoc``) and the licences of the packages
installed, in the tokens of Mistral's 32,768-token SentencePiece tokenizer, which comes with vLLM.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.metadata import distributions

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

LENGTH = 512
"""Tokens of a clean text, the least of the goal being 500."""
PERIODS = range(1, 129)
KINDS = ("exact", "jittered", "changing")
JITTER = 0.03
LEAD = 64
"""Clean tokens before a loop begins."""
_ORDINARY = (1000, 32768)
"""Token ids that stand for text: no control tokens, no bytes."""


def clean() -> list[Tokens]:
    """Texts of :data:`LENGTH` tokens, none of them twice."""
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    tokenizer = MistralTokenizer.v3().instruct_tokenizer.tokenizer
    found: dict[bytes, Tokens] = {}
    for document in _documents():
        tokens = np.array(tokenizer.encode(document, bos=False, eos=False), np.int32)
        for at in range(0, len(tokens) - LENGTH + 1, LENGTH):
            part = tokens[at : at + LENGTH]
            found.setdefault(part.tobytes(), part)
    return list(found.values())


def _documents() -> Iterator[str]:
    from pydoc_data import topics

    yield from (text for _, text in sorted(topics.topics.items()))
    licences = {
        path.read_text(encoding="utf-8")
        for distribution in distributions()
        for path in distribution.files or ()
        if "licen" in path.name.lower() and path.suffix in ("", ".txt", ".md")
    }
    yield from sorted(licences)


def loop(text: Tokens, period: int, kind: str, rng: random.Random) -> Tokens:
    """A text that runs into a loop after :data:`LEAD` tokens: its next ``period`` tokens over and over, six times and
    for 256 tokens at least.

    ``jittered``: 3 % of the looping tokens are others. ``changing``: one token of the period is another each time.
    """
    part = text[LEAD : LEAD + period]
    copies = max(6, -(-256 // period))
    looping = np.tile(part, copies)
    if kind == "jittered":
        changed = [at for at in range(len(looping)) if rng.random() < JITTER]
    else:
        changed = list(range(rng.randrange(period), len(looping), period)) if kind == "changing" else []
    for at in changed:
        looping[at] = rng.randrange(*_ORDINARY)
    return np.concatenate((text[:LEAD], looping))
