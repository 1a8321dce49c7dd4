"""What is known of a running vLLM: from its configuration, and from the platform it runs on."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from corevital.engines.protocol import Facts, reported
from corevital.engines.vllm.names import version
from corevital.engines.vllm.own_server import protect
from corevital.engines.vllm.own_tracing import traces_endpoint
from corevital.frames.layout import Source
from corevital.log import warn_once

ENGINE: Final = "vllm"

STAGES: Final = {"v1": "raw", "mrv2": "post_penalty"}
"""Which logits each model runner shows."""


class Running(NamedTuple):
    """An engine in the frontend's process.

    Attributes:
        engine: an ``AsyncLLM`` or ``LLMEngine``.
        config: its ``VllmConfig``.
    """

    engine: Any
    config: Any


def facts(running: Running) -> Facts:
    """See :class:`corevital.engines.protocol.Facts`; what this vLLM does not report is left out."""
    config = running.config
    model, parallel = config.model_config, config.parallel_config
    found: dict[str, Any] = {
        "engine.name": ENGINE,
        "engine.version": version(),
        "engine.runner": runner(config),
        "engine.dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
        "engine.quantization": getattr(model, "quantization", None),
        "engine.max_model_len": getattr(model, "max_model_len", None),
        "engine.tensor_parallel_size": getattr(parallel, "tensor_parallel_size", None),
        "engine.pipeline_parallel_size": getattr(parallel, "pipeline_parallel_size", None),
        "engine.data_parallel_size": getattr(parallel, "data_parallel_size", None),
    }
    try:
        from vllm.platforms import current_platform

        found["device.type"] = current_platform.device_type
        if current_platform.device_type != "cpu":
            found["device.name"] = current_platform.get_device_name()  # by NVML or the like: no CUDA context
            found["device.memory_bytes"] = current_platform.get_device_total_memory()
    except Exception as error:  # a driver's own errors, or a platform that has none of these
        warn_once("device", "vLLM does not report its device (%s): spans have no device.* attributes", error)
    return Facts(
        model=served_name(model),
        source=source(runner(config)),
        resource=reported(found),
        own_traces=traces_endpoint(config),
        tokenizer=(str(getattr(model, "tokenizer", None) or ""), getattr(model, "tokenizer_revision", None)),
        protect=protect,
    )


def source(runner: str) -> Source:
    """Where a model runner's logits are seen."""
    return Source(ENGINE, runner, STAGES[runner])


def runner(vllm_config: Any) -> str:
    """The model runner the engine chose, ``v1`` or ``mrv2``."""
    return "mrv2" if getattr(vllm_config, "use_v2_model_runner", False) else "v1"


def served_name(model_config: Any) -> str:
    """The name a model is served under, the first if it has several."""
    name = model_config.served_model_name or model_config.model
    return str(name[0] if isinstance(name, list | tuple) else name)


def most_rows(vllm_config: Any) -> int:
    """Rows of logits in a step at most: one a sequence, and one more for each draft."""
    sequences = int(getattr(getattr(vllm_config, "scheduler_config", None), "max_num_seqs", 0) or 1024)
    drafts = int(getattr(getattr(vllm_config, "speculative_config", None), "num_speculative_tokens", 0) or 0)
    return sequences * (1 + drafts)


def unclaimed_share(vllm_config: Any) -> float:
    """Share of the device's memory that the engine leaves free."""
    claimed = getattr(getattr(vllm_config, "cache_config", None), "gpu_memory_utilization", 0.9)
    return max(1.0 - float(claimed), 0.01)


def nodes(vllm_config: Any) -> int:
    """Hosts that the engine runs on, where the configuration names their number."""
    return int(getattr(vllm_config.parallel_config, "nnodes", 1) or 1)
