"""Stand-in: an encoder and a decoder, whose tokens are shaped otherwise."""

from __future__ import annotations

from typing import Any

from text_generation_server.models.causal_lm import CausalLMBatch
from text_generation_server.models.model import Model


class Seq2SeqLMBatch(CausalLMBatch):
    pass


class Seq2SeqLM(Model):
    batch_type = Seq2SeqLMBatch

    def generate_token(self, batch: Any) -> Any:
        generations, stopped = [], True
        for i, request in enumerate(batch.requests):
            assert batch.input_lengths[i] == len(request.inputs), "the encoder's"
            criterion = batch.stopping_criterias[i]
            logits = self.logits(request, criterion.current_tokens)
            seen = logits.float().log_softmax(-1)
            token, _ = batch.next_token_choosers[i](None, logits)
            self.truth.setdefault(request.id, []).append(float(seen[0, int(token)]))
            stop, reason = criterion(token, f"<{int(token)}>")
            stopped &= stop
            generations.append(self.answer(request, [int(token)], reason if stop else None))
        return [each for each in generations if each], None if stopped else batch, (0, 0)
