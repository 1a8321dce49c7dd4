"""Stand-in: the padded path, where every request has its own chooser."""

from __future__ import annotations

from typing import Any

import torch

from text_generation_server.models.model import Model
from text_generation_server.pb import generate_pb2
from text_generation_server.utils import tokens


class CausalLMBatch:
    def __init__(self, id: int, requests: list[Any]) -> None:
        self.id, self.requests = id, requests
        self.input_lengths = [len(request.inputs) for request in requests]
        self.next_token_choosers = [tokens.NextTokenChooser(request.parameters) for request in requests]
        self.stopping_criterias = [tokens.StoppingCriteria(request.stopping_parameters) for request in requests]

    def pick(self, rows: list[int]) -> None:
        for name in ("requests", "input_lengths", "next_token_choosers", "stopping_criterias"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])

    def filter(self, ids: list[int]) -> CausalLMBatch:
        self.pick([row for id in ids for row, request in enumerate(self.requests) if request.id == id])
        return self

    @classmethod
    def concatenate(cls, batches: list[Any]) -> CausalLMBatch:
        first = batches[0]
        for name in ("requests", "input_lengths", "next_token_choosers", "stopping_criterias"):
            setattr(first, name, [each for batch in batches for each in getattr(batch, name)])
        return first

    def to_pb(self) -> Any:
        ids = [request.id for request in self.requests]
        return generate_pb2.CachedBatch(id=self.id, request_ids=ids, size=len(ids))


class CausalLM(Model):
    batch_type = CausalLMBatch

    def generate_token(self, batch: Any) -> Any:
        generations, stopped = [], True
        rows = [
            self.logits(request, batch.stopping_criterias[i].current_tokens) for i, request in enumerate(batch.requests)
        ]
        logits = torch.cat(rows)
        for i, (request, criterion) in enumerate(zip(batch.requests, batch.stopping_criterias, strict=True)):
            seen = logits[i : i + 1].float().log_softmax(-1)
            token, _ = batch.next_token_choosers[i](None, logits[i : i + 1])
            self.truth.setdefault(request.id, []).append(float(seen[0, int(token)]))
            stop, reason = criterion(token.squeeze(), f"<{int(token)}>")
            stopped &= stop
            generations.append(self.answer(request, [int(token)], reason if stop else None))
            batch.input_lengths[i] += 1
        return [each for each in generations if each], None if stopped else batch, (0, 0)
