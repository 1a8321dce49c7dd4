"""Stand-in: the flash path: one chooser for a batch, drafts, prompts in parts."""

from __future__ import annotations

from typing import Any

import torch

from text_generation_server.models.causal_lm import CausalLMBatch
from text_generation_server.models.model import VOCAB, Model
from text_generation_server.utils import tokens


class FlashCausalLMBatch(CausalLMBatch):
    def __init__(self, id: int, requests: list[Any]) -> None:
        super().__init__(id, requests)
        self.prompt_lengths = list(self.input_lengths)
        self.parts = [len(each.inputs) // each.chunk_len if each.chunk_len else 0 for each in requests]  # still to come
        self.next_token_chooser = tokens.HeterogeneousNextTokenChooser([each.parameters for each in requests])

    def pick(self, rows: list[int]) -> None:
        super().pick(rows)
        self.prompt_lengths = [self.prompt_lengths[row] for row in rows]
        self.parts = [self.parts[row] for row in rows]
        self.next_token_chooser = self.next_token_chooser.filter(rows)

    @classmethod
    def concatenate(cls, batches: list[Any]) -> Any:
        joined = cls(batches[-1].id, [request for batch in batches for request in batch.requests])
        for name in ("stopping_criterias", "prompt_lengths", "parts"):
            setattr(joined, name, [each for batch in batches for each in getattr(batch, name)])
        return joined


class FlashCausalLM(Model):
    batch_type = FlashCausalLMBatch
    requires_padding = False

    def generate_token(self, batch: Any) -> Any:
        assert batch.prompt_lengths == [len(request.inputs) for request in batch.requests]
        width = self.speculate + 1 if all(c.current_tokens for c in batch.stopping_criterias) else 1
        places = [criterion.current_tokens for criterion in batch.stopping_criterias]
        rows = [self.logits(each, places[i] + j) for i, each in enumerate(batch.requests) for j in range(width)]
        logits = torch.cat(rows)
        seen = logits.float().log_softmax(-1).view(-1, width, VOCAB)
        drafts = None
        if width > 1:  # right in one draft and wrong in the next
            drafts = seen.argmax(-1)[:, :-1].clone()
            drafts[:, 1:] = (drafts[:, 1:] + 1) % VOCAB
        ids, accepted, _ = batch.next_token_chooser(None, logits, self.speculate, drafts)
        sampled, counts = ids.tolist(), accepted.tolist()
        generations, stopped, at = [], True, 0
        for i, (request, criterion) in enumerate(zip(batch.requests, batch.stopping_criterias, strict=True)):
            own, at = sampled[at : at + counts[i]], at + counts[i]
            if batch.parts[i]:
                batch.parts[i] -= 1
                stopped = False
                continue
            kept: list[int] = []
            for j, token in enumerate(own):
                kept.append(token)
                self.truth.setdefault(request.id, []).append(float(seen[i, j, token]))
                stop, reason = criterion(token, f"<{token}>")
                if stop:
                    break
            stopped &= stop
            generations.append(self.answer(request, kept, reason if stop else None))
        return [each for each in generations if each], None if stopped else batch, (0, 0)
