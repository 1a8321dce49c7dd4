"""Stand-in: a shard's service, called without gRPC."""

from __future__ import annotations

from typing import Any

from text_generation_server.pb import generate_pb2


class TextGenerationService:
    def __init__(self, model: Any, cache: Any, server_urls: list[str]) -> None:
        self.model, self.cache, self.server_urls = model, cache, server_urls

    async def Info(self, request: Any, context: Any) -> Any:
        return self.model.info

    async def ClearCache(self, request: Any, context: Any) -> Any:
        if request.HasField("id"):
            self.cache.pop(request.id, None)
        else:
            self.cache.clear()
        return generate_pb2.ClearCacheResponse()

    async def FilterBatch(self, request: Any, context: Any) -> Any:
        batch = self.cache.pop(request.batch_id).filter(request.request_ids)
        self.cache[batch.id] = batch
        return generate_pb2.FilterBatchResponse(batch=batch.to_pb())

    async def Warmup(self, request: Any, context: Any) -> Any:
        self.model.generate_token(self._made(request.batch))
        return generate_pb2.WarmupResponse()

    async def Prefill(self, request: Any, context: Any) -> Any:
        batch = self._made(request.batch)
        if request.HasField("cached_batch"):
            batch = self.model.batch_type.concatenate([self.cache.pop(request.cached_batch.id), batch])
        return self._generated(generate_pb2.PrefillResponse, batch)

    async def Decode(self, request: Any, context: Any) -> Any:
        batches = []
        for each in request.batches:
            if each.id not in self.cache:
                raise ValueError(f"Batch ID {each.id} not found in cache.")
            batches.append(self.cache.pop(each.id))
        batch = self.model.batch_type.concatenate(batches) if len(batches) > 1 else batches[0]
        return self._generated(generate_pb2.DecodeResponse, batch)

    def _made(self, batch: Any) -> Any:
        if any(request.inputs == "" for request in batch.requests):
            raise ValueError("an empty prompt")
        return self.model.batch_type(batch.id, list(batch.requests))

    def _generated(self, response: Any, batch: Any) -> Any:
        generations, following, _ = self.model.generate_token(batch)
        if following is not None:
            self.cache[following.id] = following
        return response(generations=generations, batch=following.to_pb() if following is not None else None)
