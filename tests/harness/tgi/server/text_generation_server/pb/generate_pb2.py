"""Stand-in: messages of router and shard, as objects."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

_FIELDS: dict[str, dict[str, Any]] = {
    "NextTokenChooserParameters": {
        "temperature": 0.0, "top_k": 0, "top_p": 0.0, "typical_p": 0.0, "do_sample": False, "seed": 0,
        "repetition_penalty": 0.0, "frequency_penalty": 0.0, "watermark": False, "grammar": "", "grammar_type": 0,
    },
    "StoppingCriteriaParameters": {"max_new_tokens": 0, "stop_sequences": ()},
    "InputChunk": {"text": ""},
    "Input": {"chunks": ()},
    "Request": {
        "id": 0, "inputs": "", "truncate": 0, "add_special_tokens": False, "top_n_tokens": 0, "input_chunks": None,
        "parameters": None, "stopping_parameters": None, "prefill_logprobs": False, "cache_len": 0, "chunk_len": None,
        "adapter_id": "", "blocks": [], "slots": [],
    },
    "Batch": {"id": 0, "requests": (), "size": 0, "max_tokens": 0, "max_blocks": 0},
    "CachedBatch": {"id": 0, "request_ids": (), "size": 0},
    "Tokens": {"ids": (), "logprobs": (), "texts": ()},
    "GeneratedText": {"finish_reason": 0},
    "Generation": {"request_id": 0, "tokens": None, "generated_text": None},
    "InfoRequest": {},
    "ClearCacheRequest": {"id": None},
    "ClearCacheResponse": {},
    "FilterBatchRequest": {"batch_id": 0, "request_ids": ()},
    "FilterBatchResponse": {"batch": None},
    "WarmupRequest": {"batch": None, "max_input_tokens": 0, "max_prefill_tokens": 0, "max_total_tokens": 0},
    "WarmupResponse": {},
    "PrefillRequest": {"batch": None, "cached_batch": None},
    "PrefillResponse": {"generations": (), "batch": None},
    "DecodeRequest": {"batches": ()},
    "DecodeResponse": {"generations": (), "batch": None},
}  # fmt: skip


class _Message:
    fields: dict[str, Any]

    def __init__(self, **given: Any) -> None:
        assert given.keys() <= self.fields.keys()
        for name, default in self.fields.items():
            setattr(self, name, given.get(name, copy.copy(default)))

    def HasField(self, name: str) -> bool:
        return getattr(self, name) is not None


for _name, _fields in _FIELDS.items():
    globals()[_name] = type(_name, (_Message,), {"fields": _fields})

_REASONS = {0: "FINISH_REASON_LENGTH", 1: "FINISH_REASON_EOS_TOKEN", 2: "FINISH_REASON_STOP_SEQUENCE"}
FinishReason = SimpleNamespace(
    DESCRIPTOR=SimpleNamespace(
        values_by_number={number: SimpleNamespace(name=name) for number, name in _REASONS.items()}
    )
)
