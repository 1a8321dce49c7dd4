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
``RequestState.detokenizer.output_token_ids``    the tokens the client got                          incomplete spans
``vllm.distributed…get_tensor_model_parallel_rank``  each token reported once                       rank 0 is assumed
===============================================  =================================================  ====================
"""

from __future__ import annotations

import re
from typing import Any, Final

from corevital.log import warn_once

CHECKED: Final = ((0, 27), (0, 32))
"""Oldest and newest minor version of vLLM that the tests ran on."""

CLASS_PATH: Final = "corevital.engines.vllm:LogitsProcessor"
"""What the name ``corevital`` stands for on vLLM's command line."""

NAME: Final = "corevital"

_OPERATIONS: Final = (("chatcmpl-", "chat"), ("resp_", "chat"), ("msg_", "chat"))
"""Prefixes of vLLM's request ids for each endpoint; everything else completes text."""

_NUMBERED: Final = re.compile(r"(cmpl-.+)-(\d+)\Z|(resp_.+)_(\d+)\Z")
"""Behind the id that the client sees, completions number their prompts and responses their turns."""


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
            "version", "vLLM %s is outside the checked range %s to %s; trying all the same", found, oldest, newest
        )


def processor_bases() -> tuple[type, ...]:
    """The logits-processor base classes this vLLM has, of model runner V1 and, from 0.31 on, V2."""
    from vllm.v1.sample.logits_processor import LogitsProcessor as V1

    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2
    except ImportError:
        return (V1,)
    return (V1, V2)


def reports_logits(vllm_config: Any) -> bool:
    """Whether this rank reports: with tensor parallelism every rank samples the same tokens, and rank 0 speaks."""
    try:
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

        return bool(get_tensor_model_parallel_rank() == 0)
    except (ImportError, AssertionError):  # the assertion: no tensor-parallel group in this process
        return bool(getattr(vllm_config.parallel_config, "rank", 0) == 0)


def runner(vllm_config: Any) -> str:
    """The model runner the engine chose, ``v1`` or ``mrv2``."""
    return "mrv2" if getattr(vllm_config, "use_v2_model_runner", False) else "v1"


def client_id(request: Any) -> str:
    """The engine request's id as vLLM's entrypoint gave it, before the engine made it unique."""
    return str(getattr(request, "external_req_id", None) or request.request_id)


def operation(request_id: str) -> str:
    """The GenAI operation name that a request id tells."""
    return next((name for prefix, name in _OPERATIONS if request_id.startswith(prefix)), "text_completion")


def split_number(request_id: str) -> tuple[str, int]:
    """The id the client sees, and the number of the prompt or turn within a request that has several."""
    match = _NUMBERED.match(request_id)
    return (match[1] or match[3], int(match[2] or match[4])) if match else (request_id, 0)
