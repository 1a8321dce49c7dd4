"""What vLLM's API server process knows of a request: its id, its parameters, its end, its tokens.

``OutputProcessor`` serves ``AsyncLLM`` and offline ``LLM`` alike, on the frontend's main thread and inside the
request's own task. :func:`attach` puts our calls around its methods, on the one instance of the engine that was
started with our processor, and around the hand-over to the engine's core.

A sequence that was admitted ends in one of these ways, whichever comes first; later ones find it gone:

- the engine or the detokenizer finishes it: ``_update_stats_from_finished``;
- the frontend lets go of it in another way: ``_finish_request``, looked at when the step's outputs are processed;
- it is aborted, by its client or by an error in its task: ``abort_requests``;
- it cannot be handed to the engine's core: :meth:`_Frontend.handed_over`;
- the engine dies: ``propagate_error``, or offline an exception of ``step``;
- the server ends: the observer is closed.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import hmac
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from corevital.engines import vllm_calls, vllm_names, xargs
from corevital.engines.vllm_hooks import after, around_outputs, follow_engine
from corevital.frames.lifecycle import Admitted, Finished, Observer
from corevital.frames.stamp import EXTRA_ARG, Stamp
from corevital.guard import guarded
from corevital.log import warn_once

_HASH_DIGITS: Final = 32
"""Of the hash, in hex: 128 bits."""

_DRAIN_S: Final = 1.5
"""How long an engine that is shut down may still be needed by sequences that have ended: their last statistics leave
the worker a quarter of a second late."""


def attach(
    engine: Any, vllm_config: Any, observer: Observer, *, content: bool = False, hash_key: str | None = None
) -> bool:
    """Follow the requests of ``engine`` (an ``AsyncLLM`` or ``LLMEngine``). False, after one warning, if we cannot.

    Args:
        engine: the engine.
        vllm_config: its configuration.
        observer: hears of its requests.
        content: hand on the text of prompts and outputs.
        hash_key: hand on a hash of the prompt's tokens with this key.
    """
    processor = getattr(engine, "output_processor", None)
    needed = ("add_request", "_update_stats_from_finished")
    missing = [name for name in needed if not callable(getattr(processor, name, None))]
    if missing:
        warn_once(
            "frontend",
            "vLLM %s has no OutputProcessor.%s: requests are served but not measured; use a checked version of vLLM",
            vllm_names.version(),
            missing[0],
        )
        return False
    frontend = _Frontend(processor, vllm_config, observer, content, hash_key)
    follow_engine(engine, frontend)
    vllm_calls.follow()
    if vllm_names.nodes(vllm_config) > 1:
        warn_once("nodes", "workers on other hosts cannot reach this server: what they serve is reported as incomplete")
    return True


@dataclass(slots=True)
class _Live:
    """A sequence that is in the engine.

    Attributes:
        stamp: None where it was not drawn.
        state: vLLM's ``RequestState``.
        since: ``time.monotonic`` of its arrival.
        first_chunk_s: seconds until its first token, where vLLM keeps no statistics.
        scored: it is one token of which the client is told probabilities.
    """

    stamp: Stamp | None
    state: Any
    since: float
    first_chunk_s: float | None = None
    scored: bool = False


class _Frontend:
    """The calls around one output processor's methods, and the sequences that are in the engine now."""

    def __init__(
        self, processor: Any, vllm_config: Any, observer: Observer, content: bool, hash_key: str | None
    ) -> None:
        self._content = content
        self._hash_key = hash_key
        self._processor = processor
        self._observer = observer
        self._model = served_name(vllm_config.model_config)
        self._runner = vllm_names.runner(vllm_config)
        self._version = vllm_names.version()
        self._live: dict[str, _Live] = {}  # by the engine's id
        self._silent: set[str] = set()  # of those, the ones whose first token we wait for
        self._let_go: set[str] = set()  # of those, the ones that vLLM is done with, in this step
        after(processor, "add_request", self._added)
        after(processor, "_update_stats_from_finished", self._finished)
        after(processor, "abort_requests", self._aborted)
        after(processor, "propagate_error", self._died)
        after(processor, "_finish_request", self._released)
        around_outputs(processor, self._arrived, self._settled)

    @guarded("the frontend's add_request")
    def _added(self, _result: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        """The request is registered and not yet sent to the engine: stamp it."""
        params = request.sampling_params
        if params is None:  # pooling
            return
        # `n` sequences may share one params object, and a client may have sent our key itself
        params = request.sampling_params = copy.copy(params)
        params.extra_args = {key: value for key, value in (params.extra_args or {}).items() if key != EXTRA_ARG}
        if vllm_calls.is_inner_step():
            return
        live = self._live.get(request.request_id)
        state = self._processor.request_states.get(request.request_id)
        if state is None:  # the end of a session that has answered all its input
            self._end(request.request_id, "stop")
            return
        stamp = _continued(live.stamp, state) if live else self._admit(request, state, args, kwargs)
        if stamp is not None:
            params.extra_args[EXTRA_ARG] = str(stamp)

    def _admit(self, request: Any, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stamp | None:
        call = vllm_calls.current()
        stamp = self._observer.admit(self._describe(request, state, call, args, kwargs))
        if stamp is not None or getattr(request, "resumable", False):  # more input to come is not drawn again
            waited = max(time.time() - request.arrival_time, 0.0)
            scored = call is not None and call.entry.scores
            self._live[request.request_id] = _Live(stamp, state, time.monotonic() - waited, scored=scored)
            if stamp is not None and state.stats is None:
                self._silent.add(request.request_id)
        return stamp

    def _describe(
        self,
        request: Any,
        state: Any,
        call: vllm_calls.Call | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Admitted:
        params = request.sampling_params
        asked = xargs.read(params.extra_args)
        given = vllm_names.client_id(request)
        request_id, number = (given, 0) if call is None else call.place(given)
        parent = kwargs.get("parent_req", args[1] if len(args) > 1 else None)
        index = kwargs.get("request_index", args[2] if len(args) > 2 else 0)
        n = params.n if parent is None else parent.sampling_params.n  # children carry n = 1
        return Admitted(
            request_id=request_id,
            engine_id=request.request_id,
            sequence=number * n + index,
            operation=vllm_calls.DEFAULT_OPERATION if call is None else call.entry.operation,
            model=getattr(request.lora_request, "lora_name", None) or self._model,
            arrival_ns=int(request.arrival_time * 1e9),
            prompt_tokens=getattr(state, "prompt_len", None) or len(request.prompt_token_ids or ()),
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k if params.top_k > 0 else None,
            max_tokens=params.max_tokens,
            seed=params.seed,
            capture=asked.capture,
            sample=asked.sample,
            tags=asked.tags,
            choices=n,
            stream=vllm_names.is_streamed(params),
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            output_type=vllm_names.output_type(params),
            prompt_text=vllm_names.prompt_text(self._processor, state) if self._content else None,
            prompt_hash=_hashed(request.prompt_token_ids, self._hash_key),
            engine="vllm",
            engine_version=self._version,
            runner=self._runner,
        )

    @guarded("the frontend's finish")
    def _finished(self, _result: Any, state: Any, reason: Any, *_args: Any, **_kwargs: Any) -> None:
        self._end(state.request_id, str(reason))

    @guarded("the frontend's abort_requests")
    def _aborted(self, aborted: Iterable[str] | None, *_args: Any, **_kwargs: Any) -> None:
        for engine_id in aborted or ():
            self._end(engine_id, "abort")

    @guarded("the frontend's propagate_error")
    def _died(self, _result: Any, *_args: Any, **_kwargs: Any) -> None:
        self.end_all("error")

    @guarded("the frontend's release")
    def _released(self, _result: Any, state: Any, *_args: Any, **_kwargs: Any) -> None:
        if state.request_id in self._live:
            self._let_go.add(state.request_id)

    @guarded("the frontend's first tokens")
    def _arrived(self, outputs: Iterable[Any]) -> None:
        """Outputs of a step are about to be processed: note first tokens where vLLM does not."""
        if not self._silent:
            return
        for output in outputs:
            if output.request_id in self._silent and output.new_token_ids:
                self._silent.discard(output.request_id)
                live = self._live[output.request_id]
                live.first_chunk_s = time.monotonic() - live.since

    @guarded("the frontend's last look")
    def _settled(self) -> None:
        """Outputs have been processed: what the frontend let go of and nobody ended had no proper end."""
        for engine_id in list(self._let_go):
            self._end(engine_id, "error")

    @guarded("the frontend's hand-over")
    def handed_over(self, engine_id: str, error: BaseException) -> None:
        """The engine's core was not given a request, or nobody waits for it any more."""
        given_up = isinstance(error, asyncio.CancelledError | KeyboardInterrupt | GeneratorExit)
        self._end(engine_id, "abort" if given_up else "error")

    @guarded("the frontend's end")
    def end_all(self, reason: str) -> None:
        """End every sequence: the engine is gone."""
        for engine_id in list(self._live):
            self._end(engine_id, reason)

    @guarded("the wait for the last statistics")
    def drain(self) -> None:
        """Wait, within a bound, until all sequences that have ended are reported. The engine must still run."""
        self._observer.drain(_DRAIN_S)

    def _end(self, engine_id: str, reason: str) -> None:
        self._silent.discard(engine_id)
        self._let_go.discard(engine_id)
        live = self._live.pop(engine_id, None)
        if live is None or live.stamp is None:  # ended already, or not measured
            return
        state = live.state
        latency = getattr(state.stats, "first_token_latency", None) if state.stats is not None else live.first_chunk_s
        self._observer.finish(
            live.stamp.key,
            Finished(
                reason="stop" if live.scored and reason == "length" else reason,  # all that was asked for
                token_ids=tuple(getattr(state.detokenizer, "output_token_ids", ())),
                end_ns=time.time_ns(),
                cached_tokens=getattr(state, "num_cached_tokens", None),
                first_chunk_s=latency or None,
                text=getattr(state.detokenizer, "output_text", None) if self._content else None,
            ),
        )


def _continued(stamp: Stamp | None, state: Any) -> Stamp | None:
    """The stamp for more input to a session, whose outputs the engine will count from 0 again.

    Input that arrives while the session still generates cannot say where its outputs will begin. They are not
    measured, and the sequence is reported as incomplete.
    """
    if stamp is None or getattr(state, "input_chunk_queue", None):
        return None
    return stamp._replace(base=len(getattr(state.detokenizer, "output_token_ids", ())))


def _hashed(token_ids: Sequence[int] | None, key: str | None) -> str | None:
    """A hash of a prompt that only who has the key can make: equal prompts are equal, and no word of them is told."""
    if not key or not token_ids:
        return None
    tokens = array("q", token_ids).tobytes()
    return hmac.new(key.encode(errors="surrogateescape"), tokens, hashlib.sha256).hexdigest()[:_HASH_DIGITS]


def served_name(model_config: Any) -> str:
    """The name a model is served under, the first if it has several."""
    name = model_config.served_model_name or model_config.model
    return str(name[0] if isinstance(name, list | tuple) else name)
