"""In a tokenizer manager: a request's arguments are checked, and what only this process knows goes to the scheduler.

That is the client's id of a sequence, its number, the endpoint, the caller's span and the time of arrival. It travels
in ``custom_params`` of the sequence that is sent, in place of anything a client put under that key; the scheduler takes
it out again. Nothing is measured here: a sequence that arrives without it is measured all the same.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from corevital.engines.sglang import request_args
from corevital.guard import guarded

KEY: Final = "corevital"
"""In ``custom_params``. Its value has strings and integers only: all that may be sent there."""

_CHATS: Final = ("chat", "responses", "messages")
"""Parts of a path that mean a chat."""

_OPENAI: Final = "/v1/"
"""Endpoints whose answer has one id: that of its first sequence."""


@dataclass(slots=True)
class _Call:
    """A client's call.

    Attributes:
        path: of the endpoint; empty offline.
        traceparent, tracestate: its headers.
        choices: sequences for each prompt.
        arrival_ns: when it arrived.
        first: the id of its first sequence.
        sent: sequences so far.
    """

    path: str
    traceparent: str
    tracestate: str
    choices: int
    arrival_ns: int
    first: str = ""
    sent: int = 0


_call: ContextVar[_Call | None] = ContextVar("corevital_sglang_call", default=None)


@guarded("the frontend's generate_request")
def called(_manager: Any, obj: Any, request: Any = None, *_args: Any, **_kwargs: Any) -> None:
    """A call begins: what it sends from here on, in this task, belongs to it."""
    headers: Mapping[str, str] = getattr(request, "headers", None) or getattr(obj, "external_trace_header", None) or {}
    params = getattr(obj, "sampling_params", None)
    asked = params[0] if isinstance(params, list) and params else params
    _call.set(
        _Call(
            path=str(getattr(getattr(request, "url", None), "path", "")),
            traceparent=headers.get("traceparent") or "",
            tracestate=headers.get("tracestate") or "",
            choices=int(asked.get("n") or 1) if isinstance(asked, dict) else 1,
            arrival_ns=time.time_ns(),
        )
    )


def validated(_manager: Any, obj: Any, *_args: Any, **_kwargs: Any) -> None:
    """Refuse a request with a wrong ``corevital_*`` argument (HTTP 400).

    Raises:
        ValueError: names the argument and what it may be.
    """
    params = getattr(obj, "sampling_params", None)
    custom = params.get(request_args.FIELD) if isinstance(params, dict) else None
    if isinstance(custom, dict):
        request_args.read(custom)


@guarded("the frontend's _send_one_request")
def sent(_manager: Any, tokenized: Any, *_args: Any, **_kwargs: Any) -> None:
    """A sequence is about to go to a scheduler."""
    if not hasattr(tokenized, "return_logprob"):  # an embedding
        return
    call = _call.get()
    params = tokenized.sampling_params = copy.copy(tokenized.sampling_params)  # `n` sequences share one
    custom = params.custom_params
    if custom is not None and not isinstance(custom, dict):
        return
    if not custom and getattr(tokenized, "custom_logit_processor", None) is not None:
        return  # such a processor must see what it would see without us: no dict
    params.custom_params = {**(custom or {}), KEY: {} if call is None else _origin(call, tokenized)}


@guarded("the frontend's _send_batch_request")
def sent_many(manager: Any, tokenized: Any, *_args: Any, **_kwargs: Any) -> None:
    """The same for several at once."""
    for each in tokenized:
        sent(manager, each)


def _origin(call: _Call, tokenized: Any) -> dict[str, str | int]:
    if call.choices > 1 and tokenized.sampling_params.max_new_tokens == 0:  # it fills the cache for the others
        return {"internal": "warm_up"}
    call.first = call.first or str(tokenized.rid)
    number, call.sent = call.sent, call.sent + 1
    is_openai = call.path.startswith(_OPENAI)
    origin: dict[str, str | int] = {
        "id": call.first if is_openai else str(tokenized.rid),
        "sequence": number if is_openai else number % call.choices,
        "choices": call.choices,
        "operation": "chat" if any(word in call.path for word in _CHATS) else "text_completion",
        "model": str(getattr(tokenized, "lora_name", None) or ""),
        "traceparent": call.traceparent,
        "tracestate": call.tracestate,
        "arrival_ns": call.arrival_ns,
    }
    return {name: value for name, value in origin.items() if value != ""}


@guarded("the attributes of SGLang's own spans")
def without_usage(attributes: Any, *_args: Any, **_kwargs: Any) -> dict[str, Any]:
    """The attributes of SGLang's own span, without token counts: ours have them in the same trace.

    A backend that sums ``gen_ai.usage.*`` over a trace would count, and bill, each token twice.
    """
    return {name: value for name, value in attributes.items() if not name.startswith("gen_ai.usage.")}
