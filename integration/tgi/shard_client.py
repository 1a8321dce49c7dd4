"""Drives one shard of TGI as its router does, over its Unix socket. Run by the Python of TGI's environment.

    python shard_client.py SOCKET SCENARIO ...

Messages are those of the engine itself. At the end each request's tokens, their log-probabilities and its end are
printed as JSON, in the order in which the requests were sent.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from text_generation_server.pb import generate_pb2

SERVICE = "generate.v3.TextGenerationService"
LIVENESS = 2**64 - 1
MOST_STEPS = 80
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Shard(ABC):
    """A shard, and what its requests have given so far."""

    def __init__(self) -> None:
        self.reasons = generate_pb2.FinishReason.DESCRIPTOR.values_by_number
        self.block_size, self.speculate, self.next_block = 0, 0, 1
        self.seen: dict[int, dict[str, Any]] = {}

    def call(self, method: str, metadata: Any = None, **fields: Any) -> Any:
        """Call a method of its service."""
        return self.ask(method, getattr(generate_pb2, f"{method}Request")(**fields), metadata)

    @abstractmethod
    def ask(self, method: str, message: Any, metadata: Any) -> Any:
        """Send a message to a method of its service; its answer."""

    def request(
        self, id: int, text: str, tokens: int = 8, stop: tuple[str, ...] = (), top_n: int = 0, **given: Any
    ) -> Any:
        parameters: dict[str, Any] = {
            "temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0, "do_sample": False, "seed": 0,
            "repetition_penalty": 1.0, "frequency_penalty": 0.0, "watermark": False, "grammar": "", **given,
        }  # fmt: skip
        plain = not {"temperature", "top_k", "top_p", "typical_p"} & set(given)  # the engine's log-probability is ours
        if id not in (0, LIVENESS):
            self.seen[id] = {"request": id, "plain": plain, "tokens": [], "logprobs": [], "texts": [], "end": None}
        make = generate_pb2
        return make.Request(
            id=id,
            inputs=text,
            truncate=64,
            add_special_tokens=True,
            top_n_tokens=top_n,
            input_chunks=make.Input(chunks=[make.InputChunk(text=text)]),
            parameters=make.NextTokenChooserParameters(**parameters),
            stopping_parameters=make.StoppingCriteriaParameters(max_new_tokens=tokens, stop_sequences=stop),
        )

    def batch(self, id: int, *requests: Any) -> Any:
        """A batch, with the blocks that the router's allocator would give each request."""
        if self.block_size:
            for each in requests:
                room = len(each.inputs) + each.stopping_parameters.max_new_tokens + self.speculate + 1
                blocks = -(-room // self.block_size)
                each.blocks.extend(range(self.next_block, self.next_block + blocks))
                each.slots.extend(b * self.block_size + i for b in each.blocks for i in range(self.block_size))
                self.next_block += blocks
        return generate_pb2.Batch(id=id, requests=requests, size=len(requests), max_tokens=1024, max_blocks=64)

    def warm_up(self) -> None:
        """As the router does: a batch whose request has the id 0, as the first real one will have."""
        info = self.call("Info")
        self.call("ClearCache")
        request = self.request(
            0, "_test " * 16, 1, top_n=20, temperature=0.9, top_k=10, top_p=0.9, typical_p=0.9,
            repetition_penalty=1.2, frequency_penalty=0.1, watermark=True,
        )  # fmt: skip
        request.prefill_logprobs = True
        sizes = {"max_input_tokens": 64, "max_prefill_tokens": 256, "max_total_tokens": 128}
        self.call("Warmup", batch=self.batch(0, request), **sizes)
        self.block_size = 0 if info.requires_padding else info.block_size
        self.speculate = info.speculate

    def take(self, answer: Any) -> Any:
        """Note the tokens, as the router does. Returns the cached batch."""
        for each in answer.generations:
            seen = self.seen.get(each.request_id)
            if seen is not None:
                seen["tokens"] += each.tokens.ids
                seen["logprobs"] += each.tokens.logprobs
                seen["texts"] += each.tokens.texts
                if each.HasField("generated_text"):
                    seen["end"] = self.reasons[each.generated_text.finish_reason].name
        return answer.batch if answer.HasField("batch") else None

    def prefill(self, batch: Any, metadata: Any = None) -> Any:
        return self.filter(self.take(self.call("Prefill", batch=batch, metadata=metadata)))

    def decode(self, *batches: Any) -> Any:
        return self.filter(self.take(self.call("Decode", batches=batches)))

    def filter(self, batch: Any, drop: frozenset[int] = frozenset()) -> Any:
        """Keep who has not ended; clear the cache where nobody is left. Those dropped end as aborts."""
        if batch is None:
            return None
        for id in drop:
            self.seen[id]["end"] = "abort"
        kept = [id for id in batch.request_ids if id in self.seen and self.seen[id]["end"] is None]
        if len(kept) == batch.size:
            return batch
        if not kept:
            self.call("ClearCache", id=batch.id)
            return None
        return self.call("FilterBatch", batch_id=batch.id, request_ids=kept).batch

    def run(self, batch: Any) -> None:
        for _ in range(MOST_STEPS):
            if batch is None:
                return
            batch = self.decode(batch)


def one(shard: Shard) -> None:
    """One request."""
    shard.run(shard.prefill(shard.batch(1, shard.request(1, "def main(", 8))))


def two(shard: Shard) -> None:
    """Two of different lengths in one batch: the shorter one is filtered out."""
    shard.run(shard.prefill(shard.batch(2, shard.request(2, "import os", 4), shard.request(3, "class Foo: pass", 9))))


def join(shard: Shard) -> None:
    """A second batch is prefilled while the first one runs, then they are concatenated; sampled, with penalties."""
    sampled: dict[str, Any] = {"temperature": 0.7, "top_k": 50, "do_sample": True, "seed": 7}
    first = shard.prefill(shard.batch(3, shard.request(4, "return self", 10, **sampled)))
    first = shard.decode(first)
    second = shard.batch(
        4,
        shard.request(5, "for x in range(", 6, repetition_penalty=1.3),
        shard.request(6, "print(", 5, top_p=0.9, do_sample=True, seed=3),
    )
    shard.run(shard.decode(first, shard.prefill(second)))


def abort(shard: Shard) -> None:
    """One of two is dropped by its client (FilterBatch without it), later the other one too (ClearCache)."""
    batch = shard.prefill(shard.batch(5, shard.request(7, "while True", 20), shard.request(8, "try:", 20)))
    batch = shard.filter(shard.decode(batch), frozenset({7}))
    assert shard.filter(shard.decode(batch), frozenset({8})) is None


def stop(shard: Shard) -> None:
    """A stop string: the same prompt twice, the second time with a stop at a text of the first answer."""
    shard.run(shard.prefill(shard.batch(6, shard.request(9, "import sys", 8, top_n=3))))
    text = next(text for text in shard.seen[9]["texts"][2:] if text.strip())
    shard.run(shard.prefill(shard.batch(7, shard.request(10, "import sys", 8, stop=(text,)))))


def health(shard: Shard) -> None:
    """The router's check of a shard's health."""
    shard.prefill(shard.batch(LIVENESS, shard.request(LIVENESS, "liveness", 1)))


def trace(shard: Shard) -> None:
    """What the router adds where it traces: the span of its batch."""
    shard.run(shard.prefill(shard.batch(8, shard.request(11, "def f", 3)), metadata=(("traceparent", PARENT),)))


def error(shard: Shard) -> None:
    """A decode that fails: the router clears the batches and fails their requests."""
    batch = shard.prefill(shard.batch(9, shard.request(12, "x = 1", 20)))
    try:
        shard.decode(batch, type(batch)(id=4242, size=1))
    except Exception:
        shard.seen[12]["end"] = "error"
    for id in (9, 4242):
        shard.call("ClearCache", id=id)


def chunks(shard: Shard) -> None:
    """A prompt in parts beside a running request: a prefill with a cached batch."""
    first = shard.prefill(shard.batch(10, shard.request(13, "print(1)", 12)))
    long = shard.request(14, "import os, sys\n" * 6, 5)
    long.chunk_len = 8
    both = shard.take(shard.call("Prefill", batch=shard.batch(11, long), cached_batch=shard.filter(first)))
    shard.run(shard.filter(both))


def grammar(shard: Shard) -> None:
    """A regular expression: what it forbids is -inf by the time the first warper is called."""
    shard.run(shard.prefill(shard.batch(12, shard.request(15, "n = ", 6, grammar="[0-9]{3,}", grammar_type=2))))


SCENARIOS: dict[str, Callable[[Shard], None]] = {
    each.__name__: each for each in (one, two, join, abort, stop, health, trace, error, chunks, grammar)
}


class Remote(Shard):
    """A shard behind a Unix socket."""

    def __init__(self, socket: str) -> None:
        import grpc

        super().__init__()
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        grpc.channel_ready_future(self._channel).result(timeout=60)

    def ask(self, method: str, message: Any, metadata: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(generate_pb2, f"{method}Response").FromString,
        )
        return call(message, timeout=120, metadata=metadata)


if __name__ == "__main__":
    shard = Remote(sys.argv[1])
    shard.warm_up()
    for name in sys.argv[2:]:
        SCENARIOS[name](shard)
    print(json.dumps(list(shard.seen.values())))
