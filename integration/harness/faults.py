"""Faults for the tests, as logits processors of their own that vLLM runs before ours. Never part of the product."""

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor


class PoisonedLogits(AdapterLogitsProcessor):
    """Puts a NaN or +Inf into the logits of requests that ask for it by ``extra_args={"poison": "nan"}`` or ``"inf"``.

    At the third token, in the entry of a token that is never sampled there.
    """

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        poison = (params.extra_args or {}).get("poison")
        if poison is None:
            return None

        def apply(output: list[int], logits: torch.Tensor) -> torch.Tensor:
            if len(output) == 2:
                logits[-1] = float(poison)
            return logits

        return apply
