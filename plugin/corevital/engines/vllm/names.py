"""Every private or unstable name of vLLM that we touch, in one place.

Where a name is missing that is logged once, we do without it, and the server keeps serving.
:data:`corevital.supported.CHECKED` has the versions that were tested.

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
``AsyncLLM.add_request(trace_headers=…)``         the caller's span, where no HTTP span is current    a root span
``Scheduler.__init__, add_request``              requests that no Python frontend of ours stamped   Python frontend only
``Scheduler._free_request``                      their end, and the core's facts of every request   Python frontend only
``Scheduler.schedule, update_from_output``       time in the queue and in prefill                   no such times
``Scheduler._update_request_with_output``        ``corevital_stop_on``                              nothing ends early
``ModelRunnerOutput.num_nans_in_logits``         the same on a NaN                                  no end on a NaN
``VLLM_COMPUTE_NANS_IN_LOGITS``                  the same                                           no end on a NaN
``Scheduler.shutdown``                           the wait for the last reports                      those are aborted
``Request.prefill_stats``, ``.stop_reason`` …    the core's facts                                   no such facts
``AsyncLLM.shutdown``                            the wait for the last statistics                   those incomplete
``LLMEngine.step``                               the engine's death, offline                        reported at shutdown
``calls.ENTRIES``, serving methods               the client's id, its parts, the operation          the engine's id
``RequestResponseMetadata``                      the client's id                                    by ``ENTRIES`` alone
``BeamSearch*Mixin.beam_search``                 to leave out its inner steps                       each is a request
``SpeechToTextBaseServing._detect_language``     the same                                           each is a request
``RequestState.detokenizer.output_token_ids``    the tokens the client got                          incomplete spans
``EngineCoreRequest.trace_headers``              the caller, where no HTTP span is current          a root
``SamplingParams.extra_args``                    ``kv_transfer_params``, which name a prefill leg   truncated requests
``parallel_state.get_tp_group, get_pcp_group``   each token reported once                           every rank reports
``BatchSharder``: slot % ranks owns a request    the same, under batch-sharded sampling             tokens are missing
``EngineCoreOutput.prefill_stats``               the source of cached tokens                        no such source
``EngineCoreOutput.spec_decode_metrics``         accepted draft tokens                              no such number
``RequestState.stats``                           queue, prefill and decode time; preemptions        none of these
``BaseIncrementalDetokenizer.update``            the stop string that ended a request               no such reason
``ReasoningParserManager``                       the marks of reasoning                             no reasoning tokens
``<serving>.parser[_cls].tool_parser_cls``        the marks of tool calls                            part of the answer
``output_processor.instrument_manual``           tokens counted once beside vLLM's own tracing      counted twice
``RequestState.prompt``, ``.tokenizer``          text, where content may leave the process          no text of prompts
``current_platform.get_device_*``                facts of the device, in the spans' resource        no such facts
``LogitsProcRequestState.*.gpu``                 where a row stands, what was sampled (V2)          no numbers under V2
===============================================  =================================================  ====================
"""

from __future__ import annotations

import re
from typing import Any

from corevital.log import warn_once
from corevital.supported import CHECKED


def version() -> str:
    """vLLM's version, as it reports it."""
    import vllm

    return str(getattr(vllm, "__version__", "unknown"))


def warn_if_unchecked() -> None:
    """Warn once if this vLLM is older or newer than those that were tested."""
    found, (oldest, newest) = version(), CHECKED["vllm"]
    match = re.match(r"(\d+)\.(\d+)", found)
    if not match or not oldest <= (int(match[1]), int(match[2])) <= newest:
        bounds = (f"{major}.{minor}" for major, minor in (oldest, newest))
        warn_once("version", "vLLM %s is outside the checked range %s to %s: untested; continuing", found, *bounds)


def processor_bases() -> tuple[type, ...]:
    """The logits-processor base classes of this vLLM: of model runner V1 and, from 0.31 on, V2."""
    from vllm.v1.sample.logits_processor import LogitsProcessor as V1

    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2
    except ImportError:
        return (V1,)
    return (V1, V2)


def client_id(request: Any) -> str:
    """The engine request's id as vLLM's entrypoint gave it, before the engine made it unique."""
    return str(getattr(request, "external_req_id", None) or request.request_id)


def warms_up(given: str) -> bool:
    """Whether the id of a request is one that vLLM's gRPC server gives its warm-up requests."""
    return given.startswith("smg-warmup-")


def is_streamed(params: Any) -> bool | None:
    """Whether an answer is streamed; None where the parameters do not show it."""
    kind = getattr(getattr(params, "output_kind", None), "name", None)
    return None if kind is None else kind == "DELTA"


def output_type(params: Any) -> str:
    """``json`` where the request asked for it, else ``text``."""
    asked = getattr(params, "structured_outputs", None)
    wants_json = getattr(asked, "json", None) is not None or getattr(asked, "json_object", None)
    return "json" if wants_json else "text"


def prompt_text(processor: Any, state: Any) -> str | None:
    """The prompt as the model reads it, chat template included; None where this vLLM has only its embeddings."""
    text = getattr(state, "prompt", None)
    if isinstance(text, str):
        return text
    tokenizer, token_ids = getattr(processor, "tokenizer", None), getattr(state, "prompt_token_ids", None)
    return str(tokenizer.decode(token_ids)) if tokenizer is not None and token_ids else None
