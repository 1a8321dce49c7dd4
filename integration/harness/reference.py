"""Per-token values by transformers, from the same weights: the oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from integration.harness.processes import MODEL
from transformers import AutoTokenizer, LlamaForCausalLM

Values = dict[str, torch.Tensor]


@lru_cache(maxsize=2)
def _model(dtype: torch.dtype) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(MODEL, dtype=dtype).eval()


@lru_cache(maxsize=1)
def tokenizer():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(MODEL)


@torch.inference_mode()
def token_values(prompt: Sequence[int], output: Sequence[int], dtype: torch.dtype = torch.float32) -> Values:
    """Entropy and surprisal (bits), margin and top-10 mass of each output token, float64."""
    ids = torch.tensor([[*prompt, *output]])
    logits = _model(dtype)(ids).logits[0, len(prompt) - 1 : -1].double()
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.exp()
    top = probabilities.topk(10).values
    return {
        "entropy": -(probabilities * logprobs).sum(-1) / math.log(2),
        "surprisal": -logprobs.gather(1, torch.tensor(output).unsqueeze(1))[:, 0] / math.log(2),
        "margin": top[:, 0] - top[:, 1],
        "topk_mass": top.sum(-1),
    }
