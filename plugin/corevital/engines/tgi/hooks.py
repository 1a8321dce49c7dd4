"""Where a shard calls us. Its service and its model are objects, of which each has one; choosers are classes."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import torch

from corevital.engines.tgi import names
from corevital.engines.tgi.watch import Watch
from corevital.guard import guarded

if TYPE_CHECKING:
    from corevital.engines.tgi.steps import Steps

_MARK: Final = "_corevital"

_steps: Steps | None = None


def follow_service(service: Any, watch: Watch) -> None:
    """Report the calls of a ``TextGenerationService`` before they are bound to a server."""
    prefill, decode, filter_batch, clear = service.Prefill, service.Decode, service.FilterBatch, service.ClearCache

    async def served(call: Awaitable[Any], batches: list[int] | None) -> Any:
        watch.is_serving = True
        try:
            answer = await call
        except Exception:
            watch.failed(batches or [])
            raise
        finally:
            watch.is_serving = False
        watch.answered(answer, batches or [])
        return answer

    @functools.wraps(prefill)
    async def Prefill(request: Any, context: Any) -> Any:
        return await served(prefill(request, context), watch.arrives(request, _traceparent(context)))

    @functools.wraps(decode)
    async def Decode(request: Any, context: Any) -> Any:
        return await served(decode(request, context), watch.joins(request))

    @functools.wraps(filter_batch)
    async def FilterBatch(request: Any, context: Any) -> Any:
        answer = await filter_batch(request, context)
        watch.keeps(request)
        return answer

    @functools.wraps(clear)
    async def ClearCache(request: Any, context: Any) -> Any:
        answer = await clear(request, context)
        watch.clears(request)
        return answer

    service.Prefill, service.Decode, service.FilterBatch, service.ClearCache = Prefill, Decode, FilterBatch, ClearCache


@guarded("the caller of a batch")
def _traceparent(context: Any) -> str | None:
    """The router's span of the batch, where it traces."""
    found = dict(context.invocation_metadata() or ()).get("traceparent")
    return found if isinstance(found, str) else None


def follow_steps(model: Any, steps: Steps) -> None:
    """Report the steps of a model, their logits and tokens."""
    global _steps  # noqa: PLW0603 - of the process, as the classes are
    _steps = steps
    generate = model.generate_token

    @functools.wraps(generate)
    def generate_token(batch: Any) -> Any:
        steps.begins(batch)
        try:
            answer = generate(batch)
        except BaseException:
            steps.fails()
            raise
        steps.ends()
        return answer

    model.generate_token = generate_token
    tokens = names.module("utils.tokens")
    _after(tokens.HeterogeneousNextTokenChooser, "__init__", _first_of_many)
    _after(tokens.NextTokenChooser, "__init__", _first_of_one)
    _after(tokens.StoppingCriteria, "__call__", _sampled)


class First:
    """First of a ``HeterogeneousNextTokenChooser``'s warpers, which work in place. Looks, and changes nothing.

    Args:
        is_alone: no other warper follows.
    """

    def __init__(self, is_alone: bool) -> None:
        self._is_alone = is_alone

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See the logits ``[rows, vocab]`` of a batch."""
        if _steps is not None:
            _steps.sees(scores, changes=not self._is_alone, is_own=False)
        return scores

    def filter(self, indices: Any) -> First:
        """For a part of the batch."""
        return self


class FirstOfOne:
    """In place of a ``NextTokenChooser``'s ``static_warper``, which may be None: then logits are only normalised.

    Args:
        inner: the warper.
    """

    def __init__(self, inner: Callable[[torch.Tensor], Any] | None) -> None:
        self._inner = inner

    def __call__(self, scores: torch.Tensor) -> Any:
        """See the logits ``[1, vocab]`` of a row, and call the warper."""
        if _steps is not None:
            # on CUDA the warper replays a graph, in memory that may be that of an earlier row
            _steps.sees(scores, changes=self._inner is not None or scores.is_cuda, is_own=True)
        if self._inner is not None:
            return self._inner(scores)
        return scores, torch.log_softmax(scores, -1)


@guarded("a token chooser's start")
def _first_of_many(chooser: Any, _result: Any, *_args: Any, **_kwargs: Any) -> None:
    chooser.warpers.insert(0, First(not chooser.warpers))


@guarded("a token chooser's start")
def _first_of_one(chooser: Any, _result: Any, *_args: Any, **_kwargs: Any) -> None:
    chooser.static_warper = FirstOfOne(chooser.static_warper)


@guarded("a token of the shard")
def _sampled(criterion: Any, result: Any, last_token: Any, *_args: Any, **_kwargs: Any) -> None:
    if _steps is not None:
        stop, reason = result
        _steps.samples(criterion, last_token, reason if stop else None)


def _after(owner: Any, name: str, ours: Callable[..., None]) -> None:
    """Call ``ours(self, result, *args)`` after a method of a class; once for each class."""
    original = getattr(owner, name)
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        ours(self, result, *args, **kwargs)
        return result

    setattr(call, _MARK, True)
    setattr(owner, name, call)
