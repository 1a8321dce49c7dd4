"""Per-token values by transformers, from the same weights: the oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from integration.harness.vllm_server import MODEL
from transformers import AutoTokenizer, LlamaForCausalLM

Values = dict[str, torch.Tensor]


@lru_cache(maxsize=2)
def _model(dtype: torch.dtype) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(MODEL, dtype=dtype).eval()


@lru_cache(maxsize=1)
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def _penalise(row: torch.Tensor, prompt: torch.Tensor, output: torch.Tensor, penalties: Mapping[str, float]) -> None:
    seen = torch.cat((prompt, output)).unique()
    factor = penalties.get("repetition_penalty", 1.0)
    row[seen] = torch.where(row[seen] > 0, row[seen] / factor, row[seen] * factor)
    counts = torch.bincount(output, minlength=len(row))
    row -= penalties.get("frequency_penalty", 0.0) * counts + penalties.get("presence_penalty", 0.0) * (counts > 0)


@torch.inference_mode()
def token_values(
    prompt: Sequence[int],
    output: Sequence[int],
    dtype: torch.dtype = torch.float32,
    penalties: Mapping[str, float] | None = None,
) -> Values:
    """Entropy and surprisal (bits), margin and top-10 mass of each output token, float64.

    ``penalties``: those of OpenAI's and Hugging Face's definitions, by the names of vLLM's sampling parameters.
    """
    ids = torch.tensor([[*prompt, *output]])
    logits = _model(dtype)(ids).logits[0, len(prompt) - 1 : -1].double()
    for index, row in enumerate(logits) if penalties else ():
        _penalise(row, torch.tensor(prompt), torch.tensor(output[:index], dtype=torch.long), penalties or {})
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.exp()
    top = probabilities.topk(10).values
    return {
        "entropy": -(probabilities * logprobs).sum(-1) / math.log(2),
        "surprisal": -logprobs.gather(1, torch.tensor(output).unsqueeze(1))[:, 0] / math.log(2),
        "margin": top[:, 0] - top[:, 1],
        "topk_mass": top.sum(-1),
    }
