"""Where a request comes from: its caller's span, and its leg of disaggregated serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from corevital.engines.request_args import w3c_parent

PREFILL: Final = "prefill"
"""The role of a first leg: it fills the KV cache, and its one token is not what the client gets."""

_MAX_ID: Final = 4096
"""Characters of an id that are looked at. It is cut to 256 bytes later."""


class Origin(NamedTuple):
    """Fields of :class:`corevital.frames.lifecycle.Admitted`, by their names there."""

    role: str | None = None
    prefill_id: str | None = None
    transfer_id: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None


def origin(params: Any, engine_id: str, trace_headers: object, asked: str | None) -> Origin:
    """The origin of a request; None for what it does not say.

    Args:
        params: vLLM's ``SamplingParams``.
        engine_id: the engine's id of the sequence, which KV connectors use too.
        trace_headers: those of the engine's request, ``traceparent`` and ``tracestate``.
        asked: its ``corevital_traceparent``, used where the headers name no valid parent.
    """
    headers = trace_headers if isinstance(trace_headers, Mapping) else {}
    passed = w3c_parent(headers.get("traceparent"))
    state = headers.get("tracestate") if passed is not None else None
    return _leg(params, engine_id)._replace(
        traceparent=passed or asked, tracestate=state if isinstance(state, str) else None
    )


def _leg(params: Any, engine_id: str) -> Origin:
    """The leg, out of the ``kv_transfer_params`` that a router puts into both.

    A first leg has ``do_remote_decode`` and is limited to one token. A second one has ``do_remote_prefill``, and from
    NIXL's connector ``remote_request_id``, the engine's id of the first. Mooncake's and MoRI-IO's have ``transfer_id``
    in both.
    """
    extra = getattr(params, "extra_args", None)
    transfer = extra.get("kv_transfer_params") if isinstance(extra, Mapping) else None
    if not isinstance(transfer, Mapping):
        return Origin()
    both = _id(transfer.get("transfer_id"))
    if transfer.get("do_remote_decode") and params.max_tokens == 1:
        return Origin(PREFILL, engine_id, both)
    if transfer.get("do_remote_prefill"):
        return Origin(None, _id(transfer.get("remote_request_id")), both)
    return Origin()


def _id(value: object) -> str | None:
    return value[:_MAX_ID] if isinstance(value, str) and value else None
