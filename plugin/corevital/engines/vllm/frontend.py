"""What vLLM's API server process knows of a request: its id, its parameters, its end, its tokens.

``OutputProcessor`` serves ``AsyncLLM`` and offline ``LLM`` alike, on the frontend's main thread and inside the
request's own task. :func:`attach` puts our calls around its methods, on the one instance of the engine that was
started with our processor, and around the hand-over to the engine's core.

A sequence that was admitted ends in one of these ways, whichever comes first; later ones are ignored:

- the engine or the detokenizer finishes it: ``_update_stats_from_finished``;
- the frontend drops it in another way: ``_finish_request``, checked when the step's outputs are processed;
- it is aborted, by its client or by an error in its task: ``abort_requests``;
- it cannot be handed to the engine's core: :meth:`_Frontend.handed_over`;
- the engine dies: ``propagate_error``, or offline an exception of ``step``;
- the server ends: the observer is closed.
"""

from __future__ import annotations

import asyncio
import copy
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from corevital.engines.prompt_hash import prompt_hash
from corevital.engines.vllm import calls, names, request_args
from corevital.engines.vllm.facts import nodes, runner, served_name, source
from corevital.engines.vllm.hooks import after, around_outputs, follow_engine, trace_headers
from corevital.engines.vllm.origin import origin
from corevital.engines.vllm.parts import Parts
from corevital.engines.vllm.request_facts import RequestFacts
from corevital.engines.vllm.stamps import carry
from corevital.frames.engine_key import engine_key
from corevital.frames.lifecycle import Admitted, Finished, Observer
from corevital.frames.stamp import Stamp
from corevital.guard import guarded
from corevital.log import warn_once

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
        observer: called with its requests.
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
            names.version(),
            missing[0],
        )
        return False
    frontend = _Frontend(processor, vllm_config, observer, content, hash_key)
    follow_engine(engine, frontend)
    calls.follow()
    if nodes(vllm_config) > 1 and engine_key().hub.tcp is None:
        warn_once(
            "nodes",
            "workers on other hosts cannot reach this server: what they serve is reported as incomplete; set "
            "COREVITAL_HUB=tcp://HOST:PORT, with HOST this one, and the same COREVITAL_HUB_KEY on all hosts",
        )
    return True


@dataclass(slots=True)
class _Live:
    """A sequence that is in the engine.

    Attributes:
        stamp: None where it was not drawn.
        state: vLLM's ``RequestState``.
        since: ``time.monotonic`` of its arrival.
        facts: what the engine's core says of it.
        call: the client's call that it belongs to.
        first_chunk_s: seconds until its first token, where vLLM keeps no statistics.
    """

    stamp: Stamp | None
    state: Any
    since: float
    facts: RequestFacts
    call: calls.Call | None = None
    first_chunk_s: float | None = None

    @property
    def scored(self) -> bool:
        """It is one token of which the client gets only probabilities."""
        return self.call is not None and self.call.entry.scores


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
        self._source = source(runner(vllm_config))
        self._version = names.version()
        self._parts = Parts(vllm_config, getattr(processor, "tokenizer", None))
        self._live: dict[str, _Live] = {}  # by the engine's id
        self._silent: set[str] = set()  # of those, the ones whose first token we wait for
        self._dropped: set[str] = set()  # of those, the ones that vLLM has dropped in this step
        after(processor, "add_request", self._added)
        after(processor, "_update_stats_from_finished", self._finished)
        after(processor, "abort_requests", self._aborted)
        after(processor, "propagate_error", self._died)
        after(processor, "_finish_request", self._released)
        around_outputs(processor, self._arrived, self._processed)

    @guarded("the frontend's add_request")
    def _added(self, _result: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        """The request is registered and not yet sent to the engine: stamp it."""
        params = request.sampling_params
        if params is None:  # pooling
            return
        # `n` sequences may share one params object, and a client may have sent our key itself
        params = request.sampling_params = copy.copy(params)
        carry(params, self._observer.left_out)
        kind = calls.internal_kind(request)
        if kind is not None:
            self._observer.internal(kind)
            return
        live = self._live.get(request.request_id)
        state = self._processor.request_states.get(request.request_id)
        if state is None:  # the end of a session that has answered all its input
            self._end(request.request_id, "stop")
            return
        stamp = _continued(live.stamp, state) if live else self._admit(request, state, args, kwargs)
        if stamp is not None:
            carry(params, stamp)

    def _admit(self, request: Any, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stamp | None:
        call = calls.current()
        stamp = self._observer.admit(self._describe(request, state, call, args, kwargs))
        if stamp is not None or getattr(request, "resumable", False):  # more input to come is not drawn again
            waited = max(time.time() - request.arrival_time, 0.0)
            rank = getattr(request, "data_parallel_rank", None)
            facts = RequestFacts(state, content=self._content, data_parallel_rank=rank)
            self._live[request.request_id] = _Live(stamp, state, time.monotonic() - waited, facts, call)
            if stamp is not None and state.stats is None:
                self._silent.add(request.request_id)
        return stamp

    def _describe(
        self,
        request: Any,
        state: Any,
        call: calls.Call | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Admitted:
        params = request.sampling_params
        asked = request_args.read(params.extra_args)
        headers = getattr(request, "trace_headers", None) or trace_headers()
        given = names.client_id(request)
        request_id, number = (given, 0) if call is None else call.place(given)
        parent = kwargs.get("parent_req", args[1] if len(args) > 1 else None)
        index = kwargs.get("request_index", args[2] if len(args) > 2 else 0)
        n = params.n if parent is None else parent.sampling_params.n  # children carry n = 1
        return Admitted(
            request_id=request_id,
            engine_id=request.request_id,
            sequence=number * n + index,
            operation=calls.DEFAULT_OPERATION if call is None else call.entry.operation,
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
            verdict=asked.verdict,
            choices=n,
            stream=names.is_streamed(params),
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            output_type=names.output_type(params),
            prompt_text=names.prompt_text(self._processor, state) if self._content else None,
            prompt_hash=prompt_hash(request.prompt_token_ids, self._hash_key),
            stop_sequences=tuple(params.stop or ()) if self._content else (),
            segmented=self._parts.expected(call),
            engine=self._source.engine,
            engine_version=self._version,
            runner=self._source.runner,
            stage=self._source.stage,
            **origin(params, request.request_id, headers, asked.traceparent)._asdict(),
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
            self._dropped.add(state.request_id)

    @guarded("the frontend's arrived outputs")
    def _arrived(self, outputs: Iterable[Any]) -> None:
        """Outputs of a step are about to be processed: note facts, and first tokens where vLLM does not."""
        for output in outputs:
            if output.finish_reason is None and getattr(output, "prefill_stats", None) is None and not self._silent:
                continue  # nearly all of them
            live = self._live.get(output.request_id)
            if live is None:
                continue
            live.facts.take(output)
            if output.request_id in self._silent and output.new_token_ids:
                self._silent.discard(output.request_id)
                live.first_chunk_s = time.monotonic() - live.since

    @guarded("the frontend's processed outputs")
    def _processed(self) -> None:
        """Outputs have been processed: a sequence that the frontend dropped and nothing ended ends as an error."""
        for engine_id in list(self._dropped):
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
        self._dropped.discard(engine_id)
        live = self._live.pop(engine_id, None)
        if live is None or live.stamp is None:  # ended already, or not measured
            return
        state = live.state
        latency = getattr(state.stats, "first_token_latency", None) if state.stats is not None else live.first_chunk_s
        # compact: it may be kept for a hub that is silent
        token_ids = array("i", getattr(state.detokenizer, "output_token_ids", ()))
        reasoning_tokens, segments = self._parts.find(live.call, token_ids, state.prompt_token_ids) or (None, ())
        self._observer.finish(
            live.stamp.key,
            Finished(
                reason="stop" if live.scored and reason == "length" else reason,  # all that was asked for
                token_ids=token_ids,
                end_ns=time.time_ns(),
                cached_tokens=getattr(state, "num_cached_tokens", None),
                first_chunk_s=latency or None,
                text=getattr(state.detokenizer, "output_text", None) if self._content else None,
                reasoning_tokens=reasoning_tokens,
                segments=segments,
                core=live.facts.core(state),
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
