"""Stand-in: a model whose logits are random numbers, the same for the same prompt and place whatever the batch."""

from __future__ import annotations

import zlib
from types import SimpleNamespace
from typing import Any

import torch

from text_generation_server.pb import generate_pb2

VOCAB = 80


class Model:
    batch_type: Any = None
    requires_padding = True

    def __init__(
        self, rank: int = 0, world_size: int = 1, dtype: torch.dtype = torch.float32, speculate: int = 0
    ) -> None:
        self.model_id = "stand-in"
        self.rank, self.world_size = rank, world_size
        self.dtype, self.device = dtype, torch.device("cpu")
        self.speculate = speculate
        self.quantize = None
        self.tokenizer = SimpleNamespace(name_or_path="")
        self.truth: dict[int, list[float]] = {}  # log-probabilities of what is sampled, nats, before any warper
        self.info = SimpleNamespace(requires_padding=self.requires_padding, block_size=0, speculate=speculate)

    def generate_token(self, batch: Any) -> Any:
        raise NotImplementedError

    def logits(self, request: Any, place: int) -> torch.Tensor:
        """``[1, vocab]``."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{request.inputs} {place}".encode()))
        return (torch.randn(1, VOCAB, generator=generator) * 3).to(self.dtype)

    def answer(self, request: Any, tokens: list[int], ended: int | None) -> Any:
        """What the router gets of a request; the shards share the requests out."""
        if request.id % self.world_size != self.rank:
            return None
        texts = [f"<{token}>" for token in tokens]
        given = generate_pb2.Tokens(ids=tokens, logprobs=self.truth[request.id][-len(tokens) :], texts=texts)
        text = None if ended is None else generate_pb2.GeneratedText(finish_reason=ended)
        return generate_pb2.Generation(request_id=request.id, tokens=given, generated_text=text)
