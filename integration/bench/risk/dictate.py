"""A logits processor for the benchmark alone: the model says what a request dictates, token by token."""

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor


class Dictated(AdapterLogitsProcessor):
    """Leaves a request whose ``extra_args`` have ``dictated``, token ids, no other choice. Comes after ours."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        dictated = (params.extra_args or {}).get("dictated")
        if dictated is None:
            return None

        def apply(output: list[int], logits: torch.Tensor) -> torch.Tensor:
            token = dictated[len(output)]
            value = logits[token].clone()
            logits.fill_(-torch.inf)
            logits[token] = value
            return logits

        return apply
