"""The adapter for vLLM's model runner V1 (``vllm.v1.sample.logits_processor``).

What this interface shows: a row of logits is a batch index; ``update_state`` shows how the batch changed before each
step; ``apply`` sees float32 logits after the logit bias and before the penalties, hence the stage ``raw``.

"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from corevital.engines.vllm.nan_counts import Counting, asks
from corevital.engines.vllm.stamps import carried
from corevital.engines.vllm.unobserved import Unobserved
from corevital.frames.stamp import Stamp
from corevital.guard import guarded
from corevital.kernels.api import is_compiled
from corevital.steps.device_tables import to_device
from corevital.steps.recorder import Observed, Post, Recorder
from corevital.steps.slots import Owners, scale
from corevital.steps.step import UNKNOWN

if TYPE_CHECKING:
    from vllm.v1.sample.logits_processor import BatchUpdate


@dataclass(frozen=True, slots=True)
class _Request:
    """A measured request in the batch."""

    stamp: Stamp
    output: list[int]  # the engine's own list of output tokens, by reference: it grows as tokens are sampled
    scale: float  # what the sampler divides by; NaN where penalties change the logits after we saw them
    ends_on_nan: bool = False  # by its own argument


@dataclass(frozen=True, slots=True)
class _Measured:
    """Who is measured in a batch, for as long as it does not change: a step has no time to work it out again."""

    requests: list[_Request]
    owners: Owners  # of slots, one after the other
    slots: list[int]
    at: torch.Tensor | None  # their rows among the logits, None for all of them


class _Pending(NamedTuple):
    """The rows of one step whose tokens are not known yet."""

    observed: Observed
    requests: list[_Request]
    indices: list[int]  # output index of the token sampled from each row


class V1Adapter:
    """State of the batch and of the step before; every method mirrors one of vLLM's interface.

    Args:
        recorder: takes what is observed; or where tables leave.
        emits: False on ranks that see the same logits as another one and must not report them twice.
    """

    def __init__(self, recorder: Recorder | Post, emits: bool = True) -> None:
        self._emits = emits
        self._recorder = recorder if isinstance(recorder, Recorder) else Recorder(recorder)
        self._batch: dict[int, _Request] = {}
        self._measured: tuple[int, _Measured | None] = (-1, None)  # and the size of the batch
        self._pending: _Pending | None = None
        self._unobserved = Unobserved()
        self._nan_counts: Counting | None = None  # of the first request that ends on them
        self._urgent: set[int] = set()  # keys in the batch whose statistics somebody waits for

    def update_state(self, update: BatchUpdate | None) -> None:
        """Before each forward pass: record the step before's tokens, then follow the batch's changes."""
        self._record_tokens()
        if update is not None:
            self._follow(update)

    @guarded("the V1 adapter's update_state")
    def _follow(self, update: BatchUpdate) -> None:
        self._measured = (-1, None)
        try:
            self._change(update)
            if self._nan_counts is not None:
                self._nan_counts.set(any(request.ends_on_nan for request in self._batch.values()))
        except Exception:
            self._batch.clear()  # better to measure nobody than to take one request for another
            raise
        if self._urgent:
            present = self._urgent.intersection(request.stamp.key for request in self._batch.values())
            if len(present) < len(self._urgent):
                self._urgent = present
                self._recorder.hurry()

    def _change(self, update: BatchUpdate) -> None:
        for index in update.removed:
            self._batch.pop(index, None)
        for index, params, _prompt, output in update.added:
            self._put(index, self._request(params, output))
        for source, target, direction in update.moved:
            moved, replaced = self._batch.pop(source, None), self._batch.pop(target, None)
            self._put(target, moved)
            if direction.name == "SWAP":
                self._put(source, replaced)

    def _request(self, params: Any, output: list[int]) -> _Request | None:
        stamp = carried(params)
        if self._emits:
            self._unobserved.note(params, stamp)
        if stamp is None or stamp.is_left_out:
            return None
        if stamp.urgent:
            self._urgent.add(stamp.key)
        penalised = params.presence_penalty != 0 or params.frequency_penalty != 0 or params.repetition_penalty != 1
        scaled = float("nan") if penalised else scale(params.temperature)
        if not asks(params):
            return _Request(stamp, output, scaled)
        self._nan_counts = self._nan_counts or Counting()
        return _Request(stamp, output, scaled, ends_on_nan=True)

    def apply(self, logits: torch.Tensor) -> None:
        """Record this step's logits ``[batch, vocab]``. Changes nothing in them."""
        self._record_tokens(last_chance=True)
        if self._emits:
            self._record_logits(logits)

    @guarded("the V1 adapter's apply")
    def _record_logits(self, logits: torch.Tensor) -> None:
        size, measured = self._measured
        if size != logits.shape[0]:
            measured = self._who(logits.shape[0], logits.device)
            self._measured = logits.shape[0], measured
        if measured is None:
            return
        indices = [len(request.output) for request in measured.requests]
        observed = self._recorder.record_logits(logits, measured.at, measured.slots, indices, measured.owners)
        if observed is not None:
            self._pending = _Pending(observed, measured.requests, indices)

    def _who(self, size: int, device: torch.device) -> _Measured | None:
        rows = sorted(index for index in self._batch if index < size)
        if not rows:
            return None
        requests = [self._batch[index] for index in rows]
        owners = Owners.of([request.stamp for request in requests], [request.scale for request in requests])
        at = None if len(rows) == size else to_device(rows, device)
        if at is not None and not is_compiled(device):
            at = at.long()
        return _Measured(requests, owners, list(range(len(rows))), at)

    def _put(self, index: int, request: _Request | None) -> None:
        if request is None:
            self._batch.pop(index, None)  # the previous request here has been replaced
        else:
            self._batch[index] = request

    @guarded("the V1 adapter's tokens")
    def _record_tokens(self, last_chance: bool = False) -> None:
        """Record the tokens of the pending rows, once they are known.

        A row whose output list has not grown was a chunk of a prompt: its token was thrown away. A token of -1 is a
        placeholder under asynchronous scheduling, replaced by the real one just before ``apply``; one that is still
        there then belongs to a request that has left, and the telemetry half resolves it from the row's table.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        pairs = zip(pending.requests, pending.indices, strict=True)
        tokens = [request.output[index] if index < len(request.output) else UNKNOWN for request, index in pairs]
        if -1 in tokens:
            if not last_chance:
                self._pending = pending
                return
            tokens = [UNKNOWN if token == -1 else token for token in tokens]
        self._recorder.record_tokens(pending.observed, tokens)
