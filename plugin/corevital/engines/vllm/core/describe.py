"""Describes a request of vLLM's engine core as :class:`Admitted`, as far as the core knows it."""

from __future__ import annotations

import re
from typing import Any, Final

from corevital.engines.prompt_hash import prompt_hash
from corevital.engines.vllm import names, request_args
from corevital.engines.vllm.facts import runner, source
from corevital.engines.vllm.origin import origin
from corevital.frames.lifecycle import Admitted, StopRule

_MADE_UNIQUE: Final = re.compile(r"(.+)-[0-9a-f]{8}\Z", re.DOTALL)
"""A frontend appends 8 hex digits to a client's id to make it unique."""

_PROMPT_END: Final = 16
"""Tokens of the prompt that the output's text may depend on."""

_INTERNAL: Final = (
    (re.compile(r".+-beam-[0-9]+(-[0-9]+)?-[0-9a-f]{8}\Z", re.DOTALL), "beam_search"),
    (re.compile(r"(generative-scoring|decision)-"), "scoring"),
)
"""The ids of requests that vLLM makes itself, of one token each, and their kinds."""


def client_id(engine_id: str) -> str:
    """The id that the client sees."""
    match = _MADE_UNIQUE.match(engine_id)
    return match[1] if match else engine_id


def internal(request: Any) -> str | None:
    """The kind of a request that vLLM makes itself; None for a client's."""
    engine_id = request.request_id
    if names.warms_up(engine_id):
        return "warm_up"
    if request.sampling_params.max_tokens != 1:
        return None
    return next((kind for form, kind in _INTERNAL if form.match(engine_id)), None)


def data_parallel_rank(config: Any) -> int | None:
    """The core's rank, None without data parallelism."""
    parallel = config.parallel_config
    index = getattr(parallel, "data_parallel_index", None)
    is_parallel = getattr(parallel, "data_parallel_rank_local", None) is not None or bool(index)
    return int(index) if index is not None and is_parallel else None


def admitted(config: Any, request: Any, *, hash_key: str | None, model: str) -> Admitted:
    """What the core knows of a request without a stamp: neither the prompt's text nor whether it is streamed."""
    params = request.sampling_params
    asked = request_args.read_valid(params.extra_args)
    where = source(runner(config))
    request_id = client_id(request.request_id)
    return Admitted(
        request_id=request_id,
        engine_id=request.request_id,
        sequence=0,
        operation="chat" if request_id.startswith("chatcmpl-") else "text_completion",
        model=getattr(request.lora_request, "lora_name", None) or model,
        arrival_ns=int(request.arrival_time * 1e9),
        prompt_tokens=request.num_prompt_tokens,
        temperature=round(params.temperature, 6),  # a frontend not in Python sends 32-bit floats
        top_p=round(params.top_p, 6),
        top_k=params.top_k if params.top_k > 0 else None,
        max_tokens=params.max_tokens,
        seed=params.seed,
        capture=asked.capture,
        sample=asked.sample,
        tags=asked.tags,
        verdict=asked.verdict,
        frequency_penalty=round(params.frequency_penalty, 6),
        presence_penalty=round(params.presence_penalty, 6),
        output_type=names.output_type(params),
        prompt_hash=prompt_hash(request.prompt_token_ids, hash_key),
        engine=where.engine,
        engine_version=names.version(),
        runner=where.runner,
        stage=where.stage,
        **origin(params, request.request_id, getattr(request, "trace_headers", None), asked.traceparent)._asdict(),
    )


def stop_rule(request: Any) -> StopRule | None:
    """The request's stop strings and their options; None if the core has received no stop string."""
    params = request.sampling_params
    if not params.stop:
        return None
    return StopRule(
        stop=tuple([params.stop] if isinstance(params.stop, str) else params.stop),
        include_stop_str=bool(params.include_stop_str_in_output),
        min_tokens=params.min_tokens,
        skip_special_tokens=params.skip_special_tokens,
        prompt_end=tuple((request.prompt_token_ids or ())[-_PROMPT_END:]),
    ).bounded()
