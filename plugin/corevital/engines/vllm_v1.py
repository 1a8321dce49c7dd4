"""The adapter for vLLM's model runner V1 (``vllm.v1.sample.logits_processor``).

What this interface shows: a row of logits is a batch index; ``update_state`` tells how the batch changed before each
step; ``apply`` sees float32 logits after the logit bias and before the penalties, hence the stage ``raw``.

The token is sampled after ``apply`` returns. The sampler scales the tensor we returned in place by the temperature and
may mask it, never at the sampled token, so keeping it until the next step gives the exact log-probability
``T * kept[token] - logsumexp``. This is checked on every row against its own maximum, which nothing masks: should
another processor have copied or changed the row, the value is withheld and the frame's top-20 table serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from corevital.engines.emitter import Emitter, Sender
from corevital.frames.record import TOP_K
from corevital.frames.stamp import EXTRA_ARG, Stamp, parse
from corevital.guard import guarded
from corevital.kernels import TokenStats, token_stats

if TYPE_CHECKING:
    from vllm.v1.sample.logits_processor import BatchUpdate

_GREEDY_BELOW: Final = 1e-5
"""Temperatures under this are greedy: vLLM divides by 1 then (``_SAMPLING_EPS`` of its sampler)."""

_TOLERANCE: Final = 1e-4
"""Relative difference between a kept maximum and the one we saw, from which on the kept row is not trusted."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A measured request in the batch."""

    stamp: Stamp
    output: list[int]  # the engine's own list of output tokens, by reference: it grows as tokens are sampled
    temperature: float  # what the sampler divides by
    penalised: bool  # penalties change the logits after we saw them


@dataclass(slots=True)
class _Pending:
    """The rows of one step whose tokens are not known yet."""

    logits: torch.Tensor  # as returned from apply(); the sampler works on it in place
    at: list[int]  # rows of `logits`
    slots: list[_Slot]
    indices: list[int]  # output index of the token sampled from each row
    stats: TokenStats


class V1Adapter:
    """State of the batch and of the step before; every method mirrors one of vLLM's interface.

    Args:
        sender: where frames leave.
        emits: False on ranks that see the same logits as another one and must not report them twice.
    """

    def __init__(self, sender: Sender, emits: bool = True) -> None:
        self._emits = emits
        self._emitter = Emitter(sender)
        self._batch: dict[int, _Slot] = {}
        self._pending: _Pending | None = None

    @guarded("the V1 adapter's update_state")
    def update_state(self, update: BatchUpdate | None) -> None:
        """Before each forward pass: settle the step before, then follow the batch's changes."""
        self._settle()
        if update is None:
            return
        for index in update.removed:
            self._batch.pop(index, None)
        for index, params, _prompt, output in update.added:
            self._put(index, _slot(params, output))
        for source, target, direction in update.moved:
            moved, replaced = self._batch.pop(source, None), self._batch.pop(target, None)
            self._put(target, moved)
            if direction.name == "SWAP":
                self._put(source, replaced)

    @guarded("the V1 adapter's apply")
    def observe(self, logits: torch.Tensor) -> None:
        """Statistics of this step's logits ``[batch, vocab]``. Changes nothing in them."""
        self._settle(last_chance=True)
        if not self._emits:
            return
        at = sorted(index for index in self._batch if index < len(logits))
        if not at:
            self._emitter.flush()
            return
        slots = [self._batch[index] for index in at]
        indices = [len(slot.output) for slot in slots]
        seen = logits if len(at) == len(logits) else logits[at]
        stats = token_stats(seen, top_k=TOP_K)
        self._emitter.rows([slot.stamp for slot in slots], indices, stats, logits.shape[1])
        self._pending = _Pending(logits, at, slots, indices, stats)

    def _put(self, index: int, slot: _Slot | None) -> None:
        if slot is None:
            self._batch.pop(index, None)  # whoever was here has been replaced
        else:
            self._batch[index] = slot

    def _settle(self, last_chance: bool = False) -> None:
        """Emit the tokens of the pending rows, once they are known.

        A row whose output list has not grown was a chunk of a prompt: its token was thrown away. A token of -1 is a
        placeholder under asynchronous scheduling, replaced by the real one just before ``apply``; one that is still
        there then belongs to a request that has left, and the telemetry half resolves it from the row's table.
        """
        pending = self._pending
        if pending is None:
            return
        known: list[int] = []
        tokens: list[int] = []
        for i, (slot, index) in enumerate(zip(pending.slots, pending.indices, strict=True)):
            if index < len(slot.output):
                if slot.output[index] < 0:
                    if last_chance:
                        continue
                    return
                known.append(i)
                tokens.append(slot.output[index])
        self._pending = None
        if known:
            slots = [pending.slots[i] for i in known]
            logprobs = _sampled_logprobs(pending, known, slots, tokens)
            self._emitter.sampled([slot.stamp for slot in slots], [pending.indices[i] for i in known], tokens, logprobs)


def _slot(params: Any, output: list[int]) -> _Slot | None:
    stamp = parse((params.extra_args or {}).get(EXTRA_ARG))
    if stamp is None:
        return None
    penalised = params.presence_penalty != 0 or params.frequency_penalty != 0 or params.repetition_penalty != 1
    temperature = 1.0 if params.temperature < _GREEDY_BELOW else params.temperature
    return _Slot(stamp, output, temperature, penalised)


def _sampled_logprobs(pending: _Pending, known: list[int], slots: list[_Slot], tokens: list[int]) -> torch.Tensor:
    """Log-probability of each sampled token, ``[known]`` float32 nats; NaN where the kept row cannot be trusted."""
    device = pending.logits.device
    which = torch.tensor(known, device=device)
    rows = torch.tensor([pending.at[i] for i in known], device=device)
    top = pending.stats.topk_ids[which, 0].long()
    wanted = torch.stack((torch.tensor(tokens, device=device), top.clamp_min(0)), dim=1)  # [known, 2]
    scale = torch.tensor([slot.temperature for slot in slots], device=device)
    kept, kept_max = (pending.logits[rows.unsqueeze(1), wanted].float() * scale.unsqueeze(1)).unbind(1)
    seen_max = pending.stats.max_logit[which]
    untouched = torch.tensor([not slot.penalised for slot in slots], device=device) & (
        (kept_max - seen_max).abs() <= _TOLERANCE * (1 + seen_max.abs())
    )
    return torch.where(untouched, kept - pending.stats.logsumexp[which], torch.nan)
