"""What vLLM's API server process knows of a request: its id, its parameters, its end, its tokens.

``OutputProcessor`` serves ``AsyncLLM`` and offline ``LLM`` alike, on the frontend's main thread and inside the
request's own task. :func:`attach` puts our calls around four of its methods, on the one instance of the engine that
was started with our processor; no class is changed.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import hmac
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from corevital.engines import vllm_names, xargs
from corevital.frames.lifecycle import Admitted, Finished, Observer
from corevital.frames.stamp import EXTRA_ARG, Stamp
from corevital.guard import guarded
from corevital.log import warn_once

_HASH_DIGITS: Final = 32
"""Of the hash, in hex: 128 bits."""


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
    _Frontend(processor, vllm_config, observer, content, hash_key)
    if vllm_names.nodes(vllm_config) > 1:
        warn_once("nodes", "workers on other hosts cannot reach this server: what they serve is reported as incomplete")
    return True


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
        self._live: dict[str, tuple[Stamp | None, Any]] = {}  # engine id -> stamp (None: not drawn), RequestState
        _after(processor, "add_request", self._added)
        _after(processor, "_update_stats_from_finished", self._finished)
        _after(processor, "abort_requests", self._aborted)
        _after(processor, "propagate_error", self._died)

    @guarded("the frontend's add_request")
    def _added(self, _result: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        """The request is registered and not yet sent to the engine: stamp it."""
        params = request.sampling_params
        if params is None:  # pooling
            return
        # `n` sequences may share one params object, and a client may have sent our key itself
        params = request.sampling_params = copy.copy(params)
        params.extra_args = {key: value for key, value in (params.extra_args or {}).items() if key != EXTRA_ARG}
        live = self._live.get(request.request_id)
        state = self._processor.request_states.get(request.request_id)
        if state is None:  # the end of a session that has answered all its input
            self._end(request.request_id, "stop")
            return
        if live:
            stamp = _continued(live[0], state)
        else:
            stamp = self._observer.admit(self._describe(request, state, args, kwargs))
            if stamp is not None or getattr(request, "resumable", False):  # more input to come is not drawn again
                self._live[request.request_id] = (stamp, state)
        if stamp is not None:
            params.extra_args[EXTRA_ARG] = str(stamp)

    def _describe(self, request: Any, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Admitted:
        params = request.sampling_params
        asked = xargs.read(params.extra_args)
        request_id, number = vllm_names.split_number(vllm_names.client_id(request))
        parent = kwargs.get("parent_req", args[1] if len(args) > 1 else None)
        index = kwargs.get("request_index", args[2] if len(args) > 2 else 0)
        n = params.n if parent is None else parent.sampling_params.n  # children carry n = 1
        return Admitted(
            request_id=request_id,
            engine_id=request.request_id,
            sequence=number * n + index,
            operation=vllm_names.operation(request_id),
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
        for engine_id in list(self._live):
            self._end(engine_id, "error")

    def _end(self, engine_id: str, reason: str) -> None:
        stamp, state = self._live.pop(engine_id, (None, None))
        if stamp is None:  # not measured, or ended already
            return
        latency = getattr(state.stats, "first_token_latency", None)
        self._observer.finish(
            stamp.key,
            Finished(
                reason=reason,
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
    return hmac.new(key.encode(), tokens, hashlib.sha256).hexdigest()[:_HASH_DIGITS]


def served_name(model_config: Any) -> str:
    """The name a model is served under, the first if it has several."""
    name = model_config.served_model_name or model_config.model
    return str(name[0] if isinstance(name, list | tuple) else name)


def _after(processor: Any, name: str, ours: Callable[..., Any]) -> None:
    """Call ``ours(result, *args)`` after the method ``name`` of this one instance."""
    original = getattr(processor, name, None)
    if original is None:
        warn_once(f"frontend:{name}", "vLLM has no OutputProcessor.%s: what it tells is missing in spans", name)
        return

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        ours(result, *args, **kwargs)
        return result

    setattr(processor, name, call)
