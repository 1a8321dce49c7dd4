"""Describes a request as :class:`Admitted`, as far as a shard knows it: no client's id, no caller, no streaming."""

from __future__ import annotations

from typing import Any

from corevital.engines.tgi import names
from corevital.engines.tgi.engine import request_args, source
from corevital.frames.lifecycle import Admitted


def admitted(
    request: Any, model: Any, *, name: str, prompt_tokens: int, arrival_ns: int, batch: str | None, content: bool
) -> Admitted:
    """What a shard knows of a request.

    Args:
        request: the router's message.
        model: the shard's.
        name: an id that no other sequence has.
        prompt_tokens: in its prompt.
        arrival_ns: when the shard received it.
        batch: the ``traceparent`` of the span that the router has for its batch; None where it traces nothing.
        content: whether prompt and output text may leave the process.
    """
    asked, p, stopping, where = request_args(request), request.parameters, request.stopping_parameters, source(model)
    samples = p.do_sample or p.temperature != 1.0 or p.top_k > 0 or p.top_p < 1.0 or p.typical_p < 1.0
    return Admitted(
        request_id="",
        engine_id=name,
        sequence=0,
        operation="text_completion",  # of a chat the router has made a prompt
        model=str(getattr(request, "adapter_id", "") or model.model_id),
        arrival_ns=arrival_ns,
        prompt_tokens=prompt_tokens,
        temperature=round(p.temperature, 6) if samples else None,  # the router sends 32-bit floats
        top_p=round(p.top_p, 6) if p.top_p < 1.0 else None,
        top_k=p.top_k or None,
        max_tokens=stopping.max_new_tokens,
        seed=p.seed if samples else None,  # drawn by the router where the client gave none
        capture=asked.capture,
        sample=asked.sample,
        tags=asked.tags,
        verdict=asked.verdict,
        frequency_penalty=round(p.frequency_penalty, 6),
        output_type="json" if p.grammar and p.grammar_type == names.GRAMMAR_JSON else "text",
        prompt_text=request.inputs if content else None,
        stop_sequences=tuple(stopping.stop_sequences) if content else (),
        batch=batch,
        engine=where.engine,
        engine_version=names.version(),
        runner=where.runner,
        stage=where.stage,
    )
