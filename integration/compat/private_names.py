"""Checks that vLLM still has the private names that we use. Reads the source of a wheel and imports nothing.

    python -m integration.compat.private_names 0.33.0

Downloads the wheel of that version from the package index, without its dependencies. Exit 1 if a name is gone.
"""

import ast
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SERVING = {
    "openai/chat_completion/serving": "OpenAIServingChat.create_chat_completion",
    "openai/chat_completion/batch_serving": "OpenAIServingChatBatch.create_batch_chat_completion",
    "openai/completion/serving": "OpenAIServingCompletion.create_completion",
    "openai/responses/serving": "OpenAIServingResponses.create_responses",
    "anthropic/serving": "AnthropicServingMessages.create_messages",
    "cohere/serving": "CohereServingChatV2.create_chat_v2",
    "scale_out/token_in_token_out/serving": "ServingTokens.serve_tokens",
    "speech_to_text/transcription/serving": "OpenAIServingTranscription.create_transcription",
    "speech_to_text/base/serving": "SpeechToTextBaseServing._detect_language",
    "speech_to_text/translation/serving": "OpenAIServingTranslation.create_translation",
    "generate/generative_scoring/serving": "ServingGenerativeScoring.create_generative_scoring",
    "generate/structured_decisions/serving": "ServingStructuredDecisions.create_decision",
    "generate/beam_search/online": "BeamSearchOnlineMixin.beam_search",
    "generate/beam_search/offline": "BeamSearchOfflineMixin.beam_search",
    "llm": "LLM.chat",
}
"""Below ``entrypoints``: where vLLM serves a client's call."""

NAMES = {
    **{f"entrypoints/{file}.py": [name] for file, name in SERVING.items()},
    "engine/arg_utils.py": ["EngineArgs.create_model_config", "EngineArgs.logits_processors"],
    "config/vllm.py": ["VllmConfig.use_v2_model_runner", "VllmConfig.model_config", "VllmConfig.parallel_config"],
    "config/observability.py": ["ObservabilityConfig.otlp_traces_endpoint"],
    "config/parallel.py": ["ParallelConfig.enable_batch_sharded_sampling"],
    "config/model.py": [
        "ModelConfig.logits_processors",
        "ModelConfig.served_model_name",
        "ModelConfig.get_vocab_size",
        "ModelConfig.dtype",
        "ModelConfig.quantization",
        "ModelConfig.max_model_len",
    ],
    "distributed/parallel_state.py": [
        "get_tp_group",
        "get_pcp_group",
        "GroupCoordinator.rank_in_group",
        "GroupCoordinator.world_size",
    ],
    "v1/engine/async_llm.py": [
        f"AsyncLLM.{name}" for name in ("__init__", "output_processor", "engine_core", "shutdown")
    ],
    "v1/engine/llm_engine.py": [
        f"LLMEngine.{name}" for name in ("__init__", "output_processor", "engine_core", "step")
    ],
    "v1/core/sched/scheduler.py": ["Scheduler.update_from_output", "Scheduler._update_request_with_output"],
    "v1/outputs.py": ["ModelRunnerOutput.num_nans_in_logits"],
    "v1/engine/core_client.py": ["AsyncMPClient.add_request_async", "SyncMPClient.add_request"],
    "v1/engine/exceptions.py": ["EngineDeadError"],
    "entrypoints/generate/base/protocol.py": ["RequestResponseMetadata.request_id"],
    "entrypoints/serve/middleware/authenticate.py": ["AuthenticationMiddleware.__call__"],
    "v1/worker/gpu/states.py": ["RequestState.remove_request"],
    "entrypoints/serve/engine/serving.py": ["BaseServing.create_error_response"],
    "v1/engine/__init__.py": [
        f"EngineCoreRequest.{name}"
        for name in (
            "request_id",
            "external_req_id",
            "sampling_params",
            "arrival_time",
            "lora_request",
            "prompt_token_ids",
            "trace_headers",
        )
    ],
    "v1/engine/output_processor.py": [
        "instrument_manual",
        *(
            f"OutputProcessor.{name}"
            for name in (
                "add_request",
                "_update_stats_from_finished",
                "abort_requests",
                "propagate_error",
                "process_outputs",
                "_finish_request",
                "request_states",
                "tokenizer",
            )
        ),
        *(
            f"RequestState.{name}"
            for name in (
                "request_id",
                "detokenizer",
                "stats",
                "prompt_len",
                "num_cached_tokens",
                "input_chunk_queue",
                "prompt",
                "prompt_token_ids",
            )
        ),
    ],
    "v1/engine/detokenizer.py": [
        "IncrementalDetokenizer.output_token_ids",
        *(f"BaseIncrementalDetokenizer.{name}" for name in ("output_text", "stop", "update")),
    ],
    "reasoning/abs_reasoning_parsers.py": [
        "ReasoningParser.reasoning_start_str",
        "ReasoningParser.reasoning_end_str",
        "ReasoningParserManager.get_reasoning_parser",
    ],
    "platforms/interface.py": [
        "Platform.device_type",
        "Platform.get_device_name",
        "Platform.get_device_total_memory",
    ],
    "v1/metrics/stats.py": [
        *(
            f"RequestStateStats.{name}"
            for name in (
                "first_token_latency",
                "queued_ts",
                "scheduled_ts",
                "first_token_ts",
                "last_token_ts",
                "num_generation_tokens",
                "num_preemptions",
            )
        ),
        *(
            f"PrefillStats.{name}"
            for name in ("num_cached_tokens", "num_local_cached_tokens", "num_external_cached_tokens")
        ),
        "RequestSpecDecodeMetrics.histogram",
    ],
    "v1/sample/logits_processor/interface.py": [
        *(f"LogitsProcessor.{name}" for name in ("apply", "update_state", "is_argmax_invariant", "validate_params")),
        *(f"BatchUpdate.{name}" for name in ("removed", "added", "moved")),
        "MoveDirectionality.SWAP",
    ],
    "v1/worker/gpu/sample/logits_processor/interface.py": [
        *(f"LogitsProcessor.{name}" for name in ("apply", "add_request", "apply_staged_writes", "validate_params")),
        *(
            f"LogitsProcRequestState.{name}"
            for name in ("device", "max_num_reqs", "all_token_ids", "prompt_len", "prefill_len", "total_len")
        ),
        *(f"LogitsContext.{name}" for name in ("expanded_idx_mapping", "idx_mapping_np", "pos")),
    ],
    "v1/worker/gpu/buffer_utils.py": ["UvaBackedTensor.np", "StagedWriteTensor.gpu"],
    "v1/worker/gpu/sample/batch_shard.py": ["BatchSharder.shard_sampler_inputs"],
}
"""By file: functions, and attributes of classes. What each is for: ``corevital.engines.vllm.names``."""


def defined(source: str) -> set[str]:
    """Functions and imports of a module, and of each class its methods, fields and what is assigned to ``self``."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
            for inner in ast.walk(node):
                match inner:
                    case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                        names.add(f"{node.name}.{name}")
                    case ast.Name(id=name, ctx=ast.Store()):
                        names.add(f"{node.name}.{name}")
                    case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                        names.add(f"{node.name}.{name}")
    return names


def missing(wheel: Path) -> list[str]:
    """The names that this wheel does not have, each with its file."""
    gone = []
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        for file, wanted in NAMES.items():
            found = defined(archive.read(f"vllm/{file}").decode()) if f"vllm/{file}" in files else set()
            gone += [f"{file}: {name}" for name in wanted if name not in found]
    return gone


def main(version: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", folder, f"vllm=={version}"], check=True)
        (wheel,) = Path(folder).glob("vllm-*.whl")
        gone = missing(wheel)
    total = sum(len(names) for names in NAMES.values())
    for name in gone:
        print(f"vLLM {version} has no {name}")
    print(f"vLLM {version}: {total - len(gone)} of {total} private names exist")
    sys.exit(bool(gone))


if __name__ == "__main__":
    main(sys.argv[1])
