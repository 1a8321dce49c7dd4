"""In a scheduler: each sequence's start and end.

A stamp stays in this process, on the engine's own request: logits are seen here too. Every method is called in the
scheduler's thread, a few times in a sequence's life or once a step; none raises or waits.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any, Final, Protocol

from corevital.engines.prompt_hash import prompt_hash
from corevital.engines.request_args import w3c_parent
from corevital.engines.sglang import names, request_args
from corevital.engines.sglang.facts import SOURCE, Running, served_name
from corevital.engines.sglang.frontend import KEY
from corevital.frames.lifecycle import STOP_STRING, Admitted, CoreFacts, Finished
from corevital.frames.stamp import Stamp
from corevital.guard import guarded

_DRAIN_S: Final = 1.5
"""How long a scheduler that shuts down waits for its last sequences to be reported."""

_LONGEST: Final = 1 << 20
"""Tokens of a sequence that are sent to the hub: 4 MiB, one part of a message. A longer one is incomplete."""

_STAMP: Final = "_corevital_stamp"


class Hub(Protocol):
    """What a watch needs of :class:`corevital.frames.remote_hub.RemoteHub`."""

    def admit(self, request: Admitted) -> Stamp | None:
        """See :meth:`corevital.frames.lifecycle.Observer.admit`."""

    def finish(self, key: int, outcome: Finished) -> None:
        """See :meth:`corevital.frames.lifecycle.Observer.finish`."""

    def internal(self, kind: str) -> None:
        """See :meth:`corevital.frames.lifecycle.Observer.internal`."""

    def unobserved(self, sequences: int) -> None:
        """See :meth:`corevital.frames.lifecycle.Observer.unobserved`."""

    def drain(self, timeout_s: float) -> bool:
        """See :meth:`corevital.frames.lifecycle.Observer.drain`."""


def carry(params: Any, stamp: Stamp | None) -> None:
    """See :meth:`corevital.engines.protocol.Engine.carry`; on SGLang's ``Req``, in the same process: no text."""
    setattr(params, _STAMP, stamp)


def carried(params: Any) -> Stamp | None:
    """See :meth:`corevital.engines.protocol.Engine.carried`."""
    return getattr(params, _STAMP, None)


@dataclass(slots=True)
class _Live:
    """A sequence in the scheduler. Times by ``time.perf_counter``, as SGLang's own.

    Attributes:
        req: the engine's request.
        stamp: ours.
        added: when it arrived here.
        waited: seconds before that.
        first: when its first token was known.
    """

    req: Any
    stamp: Stamp
    added: float
    waited: float
    first: float | None = None


class Watch:
    """Watches one scheduler.

    Args:
        running: the scheduler.
        hub: receives its sequences.
        content: whether prompt and output text may leave the process.
        hash_key: key for a hash of the prompt's tokens; None: no hash.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        running: Running,
        hub: Hub,
        content: bool,
        hash_key: str | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._hub = hub
        self._content = content
        self._hash_key = hash_key
        self._clock = clock
        self._model = served_name(running.args)
        self._rank = _rank(running)
        self._role = "prefill" if getattr(running.args, "disaggregation_mode", None) == "prefill" else None
        self._live: dict[str, _Live] = {}  # by the engine's id
        Finalize(None, self.close, exitpriority=1)  # before the hub's client, which it needs

    @property
    def measures(self) -> bool:
        """Whether any sequence in the scheduler is measured."""
        return bool(self._live)

    @guarded("the scheduler's process_req_with_grammar")
    def adds(self, _manager: Any, req: Any, *_args: Any, **_kwargs: Any) -> None:
        """A sequence arrives, and is valid."""
        origin = take_origin(req.sampling_params)
        kind = _internal(req, origin)
        if kind is not None:
            self._hub.internal(kind)
            return
        if getattr(req, "beam_group", None) is not None:  # its tokens are placeholders
            self._hub.unobserved(1)
            return
        arrival_ns = _number(origin, "arrival_ns") or time.time_ns()
        stamp = self._hub.admit(self._describe(req, origin, arrival_ns))
        carry(req, stamp)
        if stamp is not None:
            waited = max(time.time_ns() - arrival_ns, 0) / 1e9
            self._live[req.rid] = _Live(req, stamp, self._clock(), waited)

    def _describe(self, req: Any, origin: Mapping[str, Any], arrival_ns: int) -> Admitted:
        params = req.sampling_params
        asked = request_args.read_valid(params.custom_params)
        is_greedy = params.top_k == 1  # what SGLang makes of temperature 0
        wants_json = getattr(params, "json_schema", None) is not None
        return Admitted(
            request_id=_text(origin, "id") or str(req.rid),
            engine_id=str(req.rid),
            sequence=_number(origin, "sequence"),
            operation="chat" if origin.get("operation") == "chat" else "text_completion",
            model=_text(origin, "model") or self._model,
            arrival_ns=arrival_ns,
            prompt_tokens=len(req.origin_input_ids),
            temperature=0.0 if is_greedy else round(params.temperature, 6),
            top_p=round(params.top_p, 6),
            top_k=params.top_k if 1 < params.top_k < names.TOP_K_ALL else None,
            max_tokens=params.max_new_tokens,
            seed=getattr(params, "sampling_seed", None),
            capture=asked.capture,
            sample=asked.sample,
            tags=asked.tags,
            verdict=asked.verdict,
            choices=max(_number(origin, "choices"), 1),
            stream=bool(getattr(req, "stream", False)),
            frequency_penalty=round(params.frequency_penalty, 6),
            presence_penalty=round(params.presence_penalty, 6),
            output_type="json" if wants_json else "text",
            prompt_text=getattr(req, "origin_input_text", None) if self._content else None,
            prompt_hash=prompt_hash(req.origin_input_ids, self._hash_key),
            role=self._role,
            traceparent=w3c_parent(origin.get("traceparent")) or asked.traceparent,
            tracestate=_text(origin, "tracestate") or None,
            engine=SOURCE.engine,
            engine_version=names.version(),
            runner=SOURCE.runner,
            stage=SOURCE.stage,
        )

    def began(self, req: Any) -> None:
        """The first token of a sequence is known."""
        live = self._live.get(req.rid)
        if live is not None and live.first is None:
            live.first = self._clock()

    @guarded("the scheduler's stream_output")
    def ends(self, _streamer: Any, reqs: Iterable[Any], *_args: Any, **_kwargs: Any) -> None:
        """A step's output leaves: some of its sequences may have ended."""
        for req in reqs:
            if req.finished_reason is not None and req.rid in self._live:
                self._end(req.rid, str(req.finished_reason.to_json().get("type", "stop")))

    @guarded("the scheduler's send_output")
    def aborted(self, _result: Any, _sender: Any, output: Any, *_args: Any, **_kwargs: Any) -> None:
        """A message to a client's process: a sequence that left a queue without having run may be named in it."""
        if type(output).__name__ == "AbortReq":
            self._end(output.rid, "abort")

    def _end(self, rid: str, reason: str) -> None:
        live = self._live.pop(rid, None)
        if live is None:
            return
        req, now = live.req, self._clock()
        count = len(req.output_ids) if req.finished_len is None else req.finished_len
        core = self._facts(live, now)
        self._hub.finish(
            live.stamp.key,
            Finished(
                reason=reason,
                token_ids=array("i", req.output_ids[: min(count, _LONGEST)]),
                end_ns=time.time_ns(),
                cached_tokens=core.cached_tokens,
                first_chunk_s=None if live.first is None else live.waited + live.first - live.added,
                reasoning_tokens=getattr(req, "reasoning_tokens", None) or None,
                core=core,
            ),
        )

    def _facts(self, live: _Live, now: float) -> CoreFacts:
        req, stats = live.req, getattr(live.req, "time_stats", None)
        scheduled = getattr(stats, "forward_entry_time", None) or None
        matched = getattr(req.finished_reason, "matched", None)
        if isinstance(matched, str) and not self._content:
            matched = STOP_STRING
        return CoreFacts(
            queue_s=None if scheduled is None else max(scheduled - live.added, 0.0),
            prefill_s=None if scheduled is None or live.first is None else max(live.first - scheduled, 0.0),
            decode_s=None if live.first is None else now - live.first,
            preemptions=getattr(req, "retraction_count", None),
            data_parallel_rank=self._rank,
            stop_reason=str(matched) if isinstance(matched, int | str) else None,
            cached_tokens=getattr(req, "cached_tokens", None),
        )

    @guarded("the scheduler's end")
    def close(self) -> None:
        """The scheduler ends: finish its sequences, and wait for their reports within a bound."""
        for rid in list(self._live):
            self._end(rid, "abort")
        self._hub.drain(_DRAIN_S)


def take_origin(params: Any) -> Mapping[str, Any]:
    """What the frontend has sent along, taken out again; empty where no frontend of ours was there."""
    custom = params.custom_params
    if not isinstance(custom, dict) or KEY not in custom:
        return {}
    origin = custom[KEY]
    params.custom_params = {name: value for name, value in custom.items() if name != KEY} or None
    return origin if isinstance(origin, dict) else {}


def _internal(req: Any, origin: Mapping[str, Any]) -> str | None:
    """The kind of a sequence that SGLang makes itself, or that has no output; None for a client's."""
    if req.rid.startswith(names.HEALTH_CHECK) or origin.get("internal"):
        return "warm_up"
    return "scoring" if req.sampling_params.max_new_tokens == 0 else None


def _text(origin: Mapping[str, Any], name: str) -> str:
    value = origin.get(name)
    return value if isinstance(value, str) else ""


def _number(origin: Mapping[str, Any], name: str) -> int:
    value = origin.get(name)
    return value if type(value) is int and 0 <= value < 1 << 62 else 0


def _rank(running: Running) -> int | None:
    """The scheduler's rank, None without data parallelism."""
    if (getattr(running.args, "dp_size", None) or 1) == 1:
        return None
    try:
        from sglang.srt.runtime_context import get_parallel

        rank = get_parallel().dp_rank
    except (ImportError, AttributeError):  # not in this version
        return None
    return rank if isinstance(rank, int) else None
