"""The serving methods that show a request's id and operation, in the installed vLLM."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from corevital.engines.vllm import calls

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
    wanted = [(entry.module, entry.name) for entry in calls.ENTRIES]
    wanted += [(module, name) for module, name, _ in calls._STEPS] + list(calls._METADATA)
    assert {name for module, name in wanted if found(module, name) is not None} >= EVERYWHERE
    for entry in calls.ENTRIES:
        method = found(entry.module, entry.name)
        if method is not None and entry.module != "llm":
            assert inspect.iscoroutinefunction(method), entry.name


def test_the_clients_id_comes_from_vllms_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    made = next(cls for module, name in calls._METADATA if (cls := found(module, name)) is not None)
    monkeypatch.setattr(made, "__init__", calls._noting_id(made.__init__))
    here = calls.Call(calls.ENTRIES[0])
    token = calls._call.set(here)
    try:
        assert made(request_id="mine").request_id == "mine"
    finally:
        calls._call.reset(token)
    assert here.request_id == "mine"
    assert made(request_id="other").request_id == "other", "outside of a call too"
