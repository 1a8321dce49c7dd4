"""Bad logits for the tests, by a separate logits processor that vLLM runs before ours. Not part of the product."""

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from corevital.engines.vllm.names import processor_bases

AT = 2
"""Output index of the logits that are poisoned, in the entry of a token that is never sampled."""


class _PoisonedV1(AdapterLogitsProcessor):
    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        poison = (params.extra_args or {}).get("poison")
        if poison is None:
            return None

        def apply(output: list[int], logits: torch.Tensor) -> torch.Tensor:
            if len(output) == AT:
                logits[-1] = float(poison)
            return logits

        return apply


class PoisonedLogits(*processor_bases()):
    """Puts a NaN or +Inf into the logits of requests whose ``extra_args`` say ``"poison": "nan"`` or ``"inf"``."""

    def __init__(self, vllm_config: Any, *runner: Any) -> None:
        self.v1 = _PoisonedV1(vllm_config, *runner) if len(runner) == 2 else None
        self.states = runner[0]
        self.poisons: dict[int, float] = {}  # slot -> value

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, update: Any) -> None:
        assert self.v1
        self.v1.update_state(update)

    def add_request(self, slot: int, params: SamplingParams) -> bool:
        poison = (params.extra_args or {}).get("poison")
        self.poisons.pop(slot, None)
        if poison is not None:
            self.poisons[slot] = float(poison)
        return poison is not None

    def apply(self, logits: torch.Tensor, *context: Any) -> torch.Tensor:
        if self.v1:
            return self.v1.apply(logits)
        slots, positions = context[0].expanded_idx_mapping.tolist(), context[0].pos.tolist()
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            if slot in self.poisons and position + 1 - int(self.states.prompt_len.np[slot]) == AT:
                logits[row, -1] = self.poisons[slot]
        return logits
