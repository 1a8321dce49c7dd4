"""Every private or unstable name of vLLM that we touch, in one place.

Checked on vLLM 0.27 to 0.32 (:data:`CHECKED`). Where a name is missing we say so once, do without, and the server keeps
serving.

===============================================  =================================================  ====================
name                                             for                                                without it
===============================================  =================================================  ====================
``EngineArgs.create_model_config``               the name ``corevital`` on the command line         only the class name
``AsyncLLM.__init__``, ``LLMEngine.__init__``    to reach the engine's output processor             no spans
``<engine>.output_processor``                    the frontend's view of requests                    no spans
``OutputProcessor.add_request``                  stamps                                             no spans
``OutputProcessor._update_stats_from_finished``  the end of a request, its tokens                   no spans
``OutputProcessor.abort_requests``               aborts                                             aborts come late
``OutputProcessor.propagate_error``              the engine's death                                 reported at shutdown
``OutputProcessor._finish_request``              requests that end in no other way we know          reported at shutdown
``OutputProcessor.process_outputs``              time to the first token without vLLM's statistics  no such time
``EngineCoreClient.add_request[_async]``         requests that do not reach the engine              reported at shutdown
``AsyncLLM.shutdown``                            the wait for the last statistics                   those incomplete
``LLMEngine.step``                               the engine's death, offline                        reported at shutdown
``vllm_calls.ENTRIES``, serving methods          the client's id, its parts, the operation          the engine's id
``RequestResponseMetadata``                      the client's id                                    by ``ENTRIES`` alone
``BeamSearch*Mixin.beam_search``                 to leave out its inner steps                       each is a request
``SpeechToTextBaseServing._detect_language``     the same                                           each is a request
``RequestState.detokenizer.output_token_ids``    the tokens the client got                          incomplete spans
``parallel_state.get_tp_group, get_pcp_group``   each token reported once                           every rank reports
``BatchSharder``: slot % ranks owns a request    the same, under batch-sharded sampling             tokens are missing
``output_processor.instrument_manual``           tokens counted once beside vLLM's own tracing      counted twice
``RequestState.prompt``, ``.tokenizer``          text, where content may leave the process          no text of prompts
``current_platform.get_device_*``                facts of the device, in the spans' resource        no such facts
``LogitsProcRequestState.*.gpu``                 where a row stands, what was sampled (V2)          no numbers under V2
===============================================  =================================================  ====================
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Final

from corevital.log import warn_once

CHECKED: Final = ((0, 27), (0, 32))
"""Oldest and newest minor version of vLLM that the tests ran on."""

CLASS_PATH: Final = "corevital.engines.vllm:LogitsProcessor"
"""What the name ``corevital`` stands for on vLLM's command line."""

NAME: Final = "corevital"
NAME_OF_ENGINE: Final = "vllm"

_MARK: Final = "_corevital"
_MAKER: Final = "instrument_manual"
_USAGE: Final = "gen_ai.usage."


def version() -> str:
    """vLLM's version, as it says itself."""
    import vllm

    return str(getattr(vllm, "__version__", "unknown"))


def warn_if_unchecked() -> None:
    """Say once if this vLLM is older or newer than those we were tried on; go on in any case."""
    found = version()
    match = re.match(r"(\d+)\.(\d+)", found)
    if not match or not CHECKED[0] <= (int(match[1]), int(match[2])) <= CHECKED[1]:
        oldest, newest = (f"{major}.{minor}" for major, minor in CHECKED)
        warn_once(
            "version", "vLLM %s is outside the checked range %s to %s: untested; continuing", found, oldest, newest
        )


def processor_bases() -> tuple[type, ...]:
    """The logits-processor base classes this vLLM has, of model runner V1 and, from 0.31 on, V2."""
    from vllm.v1.sample.logits_processor import LogitsProcessor as V1

    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2
    except ImportError:
        return (V1,)
    return (V1, V2)


def reports_logits() -> bool:
    """Whether this rank reports: with tensor or context parallelism every rank samples the same, and rank 0 speaks."""
    return all(rank == 0 for rank, _ in (_place("tp"), _place("pcp")))


def reported_slots(vllm_config: Any) -> Callable[[int], bool]:
    """Which slots of Model Runner V2 this rank reports.

    With batch-sharded sampling each tensor-parallel rank is shown the requests in its own slots. vLLM switches it off
    again for a model that cannot; then all ranks are shown everything, and each still reports the same slots.
    """
    rank, size = _place("tp")
    if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False) and _place("pcp")[0] == 0:
        return lambda slot: slot % size == rank
    reports = reports_logits()
    return lambda slot: reports


def _place(group: str) -> tuple[int, int]:
    """This process's rank in a parallel group, and the group's size."""
    from vllm.distributed import parallel_state

    try:
        found = getattr(parallel_state, f"get_{group}_group")()
        return int(found.rank_in_group), int(found.world_size)
    except (AttributeError, AssertionError):  # not in this version; no such group in this process
        return 0, 1


def runner(vllm_config: Any) -> str:
    """The model runner the engine chose, ``v1`` or ``mrv2``."""
    return "mrv2" if getattr(vllm_config, "use_v2_model_runner", False) else "v1"


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
    """Hosts that the engine runs on, where the configuration says."""
    return int(getattr(vllm_config.parallel_config, "nnodes", 1) or 1)


def client_id(request: Any) -> str:
    """The engine request's id as vLLM's entrypoint gave it, before the engine made it unique."""
    return str(getattr(request, "external_req_id", None) or request.request_id)


def traces_endpoint(vllm_config: Any) -> str | None:
    """Where vLLM's own tracing sends its spans (``--otlp-traces-endpoint``), None where it is off."""
    observability = getattr(vllm_config, "observability_config", None)
    return getattr(observability, "otlp_traces_endpoint", None) or None


def is_streamed(params: Any) -> bool | None:
    """Whether an answer is streamed; None where the parameters do not tell."""
    kind = getattr(getattr(params, "output_kind", None), "name", None)
    return None if kind is None else kind == "DELTA"


def output_type(params: Any) -> str:
    """``json`` where the request asked for it, else ``text``."""
    asked = getattr(params, "structured_outputs", None)
    wants_json = getattr(asked, "json", None) is not None or getattr(asked, "json_object", None)
    return "json" if wants_json else "text"


def facts(vllm_config: Any) -> dict[str, str | int]:
    """What there is to know of the engine and of one device it serves on; what this vLLM does not say is left out.

    Names begin with ``engine.`` or ``device.``; memory is in bytes.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    found: dict[str, Any] = {
        "engine.name": NAME_OF_ENGINE,
        "engine.version": version(),
        "engine.runner": runner(vllm_config),
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
            found["device.name"] = current_platform.get_device_name()  # by NVML or its like: no CUDA context
            found["device.memory_bytes"] = current_platform.get_device_total_memory()
    except Exception as error:  # a driver's own errors, or a platform that has none of these
        warn_once("device", "vLLM does not say what it serves on (%s): spans do without", error)
    return {name: value for name, value in found.items() if isinstance(value, str | int) and value != ""}


def leave_tokens_to_us() -> None:
    """Take the token counts off vLLM's own ``llm_request`` spans, where ours have them in the same trace.

    A backend that sums ``gen_ai.usage.*`` over a trace would count, and bill, each token twice.
    """
    from vllm.v1.engine import output_processor

    make = getattr(output_processor, _MAKER, None)
    if make is None:
        warn_once(
            "usage",
            "vLLM %s makes its own spans in a way we do not know: each token is counted by its span and by ours; "
            "leave --otlp-traces-endpoint out, or count by corevital.* alone",
            version(),
        )
        return
    if hasattr(make, _MARK):
        return

    @functools.wraps(make)
    def without_usage(*args: Any, attributes: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        kept = {name: value for name, value in (attributes or {}).items() if not name.startswith(_USAGE)}
        return make(*args, attributes=kept, **kwargs)

    setattr(without_usage, _MARK, True)
    setattr(output_processor, _MAKER, without_usage)


def prompt_text(processor: Any, state: Any) -> str | None:
    """The prompt as the model was given it, chat template and all; None where this vLLM has only embeddings of it."""
    text = getattr(state, "prompt", None)
    if isinstance(text, str):
        return text
    tokenizer, token_ids = getattr(processor, "tokenizer", None), getattr(state, "prompt_token_ids", None)
    return str(tokenizer.decode(token_ids)) if tokenizer is not None and token_ids else None
