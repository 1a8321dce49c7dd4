"""The serving methods that tell a request's id and operation, in the vLLM that is installed."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from corevital.engines import vllm_calls

EVERYWHERE = {
    "OpenAIServingChat.create_chat_completion",
    "OpenAIServingChatBatch.create_batch_chat_completion",
    "OpenAIServingCompletion.create_completion",
    "OpenAIServingResponses.create_responses",
    "AnthropicServingMessages.create_messages",
    "ServingTokens.serve_tokens",
    "OpenAIServingTranscription.create_transcription",
    "OpenAIServingTranslation.create_translation",
    "ServingGenerativeScoring.create_generative_scoring",
    "LLM.chat",
    "BeamSearchOnlineMixin.beam_search",
    "BeamSearchOfflineMixin.beam_search",
    "SpeechToTextBaseServing._detect_language",
    "RequestResponseMetadata",
}
"""What all checked versions have; others came later, or need a package that is not here."""


def found(module: str, name: str) -> Any:
    try:
        owner: Any = importlib.import_module(f"vllm.entrypoints.{module}")
        for part in name.split("."):
            owner = getattr(owner, part)
    except (ImportError, AttributeError):
        return None
    return owner


def test_this_vllm_has_the_serving_methods_we_follow() -> None:
    wanted = [(entry.module, entry.name) for entry in vllm_calls.ENTRIES]
    wanted += [*vllm_calls._BEAMS, *vllm_calls._STEPS, *vllm_calls._METADATA]
    assert {name for module, name in wanted if found(module, name) is not None} >= EVERYWHERE
    for entry in vllm_calls.ENTRIES:
        method = found(entry.module, entry.name)
        if method is not None and entry.module != "llm":
            assert inspect.iscoroutinefunction(method), entry.name


def test_the_clients_id_is_heard_from_vllms_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    made = next(cls for module, name in vllm_calls._METADATA if (cls := found(module, name)) is not None)
    monkeypatch.setattr(made, "__init__", vllm_calls._told(made.__init__))
    here = vllm_calls.Call(vllm_calls.ENTRIES[0])
    token = vllm_calls._call.set(here)
    try:
        assert made(request_id="mine").request_id == "mine"
    finally:
        vllm_calls._call.reset(token)
    assert here.request_id == "mine"
    assert made(request_id="other").request_id == "other", "outside of a call too"
