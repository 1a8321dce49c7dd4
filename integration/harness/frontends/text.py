"""The text of tokens, as a server decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from integration.harness.vllm_server import MODEL
from tokenizers import Tokenizer


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def decode(token_ids: Sequence[int]) -> str:
    """Without special tokens."""
    return str(_tokenizer().decode(list(token_ids), skip_special_tokens=True))
