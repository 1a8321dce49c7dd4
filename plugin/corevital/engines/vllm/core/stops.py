"""Ends sequences early in vLLM's scheduler, where a stop token would: every frontend then sees an ordinary ``stop``.

A request that asks for it is looked at when the scheduler takes in its tokens. Its status becomes ``FINISHED_STOPPED``
there and its stop reason ``corevital:loop``, so what a stop token means under asynchronous scheduling, for streams and
for tokens that are already being computed holds here too. Nothing is ended before the request's ``min_tokens``.

- ``nan``: vLLM counts the NaN of each request's logits (:mod:`corevital.engines.vllm.nan_counts`) and returns the
  counts with the step's tokens. The token that was sampled from them is the last one.
- ``loop``: the core has all tokens, so it looks for itself.
- ``alarm``: the hub knows it, and sends an order. It comes into effect with the sequence's next token.

The scheduler's methods are wrapped only while such a request runs: otherwise no step takes a microsecond longer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from corevital.engines.protocol import LoopCheck
from corevital.guard import guarded
from corevital.log import warn_once
from corevital.supported import STOPPED

_TOKENS: Final = "_update_request_with_output"
_STEP: Final = "update_from_output"


@dataclass(slots=True)
class _Asked:
    """A request that may be ended.

    Attributes:
        nan: on a NaN among its logits.
        loop: looks for a loop; None: it is not ended on one.
        because: why it is to end; None: it runs on.
    """

    nan: bool
    loop: LoopCheck | None
    because: str | None = None


class Stops:
    """What may be ended of one scheduler's requests.

    Args:
        scheduler: vLLM's.
        new_loop_check: makes what looks for a loop in one sequence.
    """

    def __init__(self, scheduler: Any, new_loop_check: Callable[[], LoopCheck]) -> None:
        self._scheduler = weakref.ref(scheduler)
        self._new_loop_check = new_loop_check
        self._asked: dict[str, _Asked] = {}  # by the engine's id
        self._nans: dict[str, int] = {}  # of the step that is taken in now

    def ask(self, engine_id: str, on: Collection[str]) -> None:
        """A request arrives that ends early on some of :data:`corevital.supported.STOP_ON`."""
        if not self._asked and not self._wrap():
            return
        self._asked[engine_id] = _Asked("nan" in on, self._new_loop_check() if "loop" in on else None)

    def drop(self, engine_id: str) -> bool:
        """A request has ended. Returns whether it had been asked for."""
        if self._asked.pop(engine_id, None) is None:
            return False
        if not self._asked:
            self._unwrap()
        return True

    def order(self, engine_id: str, because: str) -> None:
        """End a request with its next token. From any thread; one that has ended is left alone."""
        asked = self._asked.get(engine_id)
        if asked is not None and asked.because is None:
            asked.because = because

    def _wrap(self) -> bool:
        scheduler = self._scheduler()
        missing = [name for name in (_TOKENS, _STEP) if not callable(getattr(type(scheduler), name, None))]
        if scheduler is None or missing:
            warn_once("stops", "corevital_stop_on has no effect: this vLLM has no Scheduler.%s", ", ".join(missing))
            return False
        this: Any = self._scheduler  # weak: what is put on the scheduler must not keep it

        def step(*args: Any, **kwargs: Any) -> Any:
            output = kwargs.get("model_runner_output", args[-1] if args else None)
            self._nans = getattr(output, "num_nans_in_logits", None) or {}
            return type(this()).update_from_output(this(), *args, **kwargs)

        def tokens(request: Any, *args: Any, **kwargs: Any) -> Any:
            new, stopped = type(this())._update_request_with_output(this(), request, *args, **kwargs)
            return new, stopped or bool(self._ends(request))

        scheduler.__dict__.update({_STEP: step, _TOKENS: tokens})
        return True

    def _unwrap(self) -> None:
        scheduler = self._scheduler()
        for name in (_TOKENS, _STEP):
            vars(scheduler).pop(name, None)
        self._nans = {}

    @guarded("the end of a sequence by corevital_stop_on")
    def _ends(self, request: Any) -> bool:
        """End the request if it is to end with the tokens that it has now."""
        asked = self._asked.get(request.request_id)
        if asked is None:
            return False
        if asked.nan and asked.because is None and self._nans.get(request.request_id):
            asked.because = "nan"
        made = request.num_output_tokens
        if made < request.sampling_params.min_tokens:
            return False
        loop = asked.loop
        if asked.because is None and loop is not None and made >= loop.due and loop.looping(request.output_token_ids):
            asked.because = "loop"
        if asked.because is None:
            return False
        request.status = type(request.status).FINISHED_STOPPED
        request.stop_reason = STOPPED + asked.because
        return True
