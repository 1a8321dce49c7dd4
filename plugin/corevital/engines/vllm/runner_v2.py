"""The adapter for vLLM's Model Runner V2 (``vllm.v1.worker.gpu.sample.logits_processor``).

What this interface shows: requests live in slots, which are recycled without a removal call (that of vLLM's own
slots is followed, for statistics that somebody waits for); a row of logits comes
with its slot and position, on the device; a request has several rows under speculative decoding. ``apply`` sees
float32 logits after penalties and grammar and before the temperature, hence the stage ``post_penalty``.

Nothing of a step is known on the host: where a row stands, which drafts were accepted and what was sampled are read on
the device, and travel with the statistics. The sampled tokens are read at the start of the
next step, before a new owner's prompt is written into the slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import torch

from corevital.engines.vllm.hooks import on_class
from corevital.engines.vllm.stamps import carried
from corevital.engines.vllm.unobserved import Unobserved
from corevital.frames.layout import REJECTED
from corevital.guard import guarded
from corevital.kernels.api import is_compiled
from corevital.steps.recorder import Observed, Post, Recorder
from corevital.steps.slots import Slots, scale
from corevital.steps.step import Kept

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

_adapters: WeakKeyDictionary[Any, ref[V2Adapter]] = WeakKeyDictionary()
"""By the buffer of tokens that they share with their runner's states, and hold."""


class V2Adapter:
    """Owners of the slots and the rows of the step before; every method mirrors one of vLLM's interface.

    Args:
        recorder: takes what is observed; or where tables leave.
        states: the runner's per-slot buffers.
        reports: whether this rank reports the request in a slot (others may see the same logits).
    """

    def __init__(
        self,
        recorder: Recorder | Post,
        states: LogitsProcRequestState,
        reports: Callable[[int], bool] = lambda slot: True,
    ) -> None:
        self._recorder = recorder if isinstance(recorder, Recorder) else Recorder(recorder)
        self._states = states
        self._reports = reports
        self._slots = Slots(states.max_num_reqs)
        self._unobserved = Unobserved()
        self._urgent: set[int] = set()  # slots of sequences whose statistics somebody waits for
        self._has_ended = False  # one of them has
        # rows; and their slots and lengths, where the table does not keep them
        self._pending: list[tuple[Observed, tuple[torch.Tensor, torch.Tensor] | None]] = []

    def add_request(self, slot: int, params: SamplingParams) -> bool:
        """A request enters ``slot``. True asks to be shown its logits: on every rank, so that all take one path."""
        return bool(self._add_request(slot, params))

    @guarded("the V2 adapter's add_request")
    def _add_request(self, slot: int, params: Any) -> bool:
        self._slots.clear(slot)
        self._record_tokens()
        self._urgent.discard(slot)
        stamp = carried(params)
        if self._reports(slot):
            self._unobserved.note(params, stamp)
        if stamp is None or stamp.is_left_out:
            return False
        if self._reports(slot):
            prompt, prefill = (int(tokens.np[slot]) for tokens in (self._states.prompt_len, self._states.prefill_len))
            self._slots.put(slot, stamp, scale(params.temperature), prompt, first=prefill - 1)
            if stamp.urgent:
                self._urgent.add(slot)
        return True

    @guarded("the V2 adapter's tokens")
    def apply_staged_writes(self) -> None:
        """Before each forward pass, and where there is none because all sequences have ended."""
        self._record_tokens()
        if self._has_ended:
            self._has_ended = False
            self._recorder.hurry()

    @guarded("the V2 adapter's removals")
    def follow_removals(self) -> None:
        """Have vLLM's slots call ``removed``; without it statistics are gathered for a quarter of a second."""
        from vllm.v1.worker.gpu.states import RequestState

        _adapters[self._states.all_token_ids] = ref(self)
        on_class(RequestState, "remove_request", _removing)

    @guarded("the V2 adapter's removal")
    def removed(self, slot: int) -> None:
        """The sequence in ``slot`` has left it. The tokens of its last rows are not recorded yet."""
        if slot in self._urgent:
            self._urgent.discard(slot)
            self._has_ended = True

    def _record_tokens(self) -> None:
        """Record the tokens of the previous rows, and release their logits.

        A row's token was accepted if the sequence has grown beyond it.
        """
        pending, self._pending = self._pending, []
        known = self._states.all_token_ids.gpu
        for observed, place in pending:
            if place is None:
                self._recorder.record_tokens(observed, Kept(known, self._states.total_len.gpu))
                continue
            slots, length = place
            tokens = known[slots, length.clamp_max(known.shape[1] - 1)]
            accepted = length < self._states.total_len.gpu[slots].clamp_max(known.shape[1])
            self._recorder.record_tokens(observed, torch.where(accepted, tokens, REJECTED))

    @guarded("the V2 adapter's apply")
    def apply(self, logits: torch.Tensor, context: LogitsContext) -> None:
        """Record this step's logits ``[rows, vocab]``, called again for each part of a large verification.

        A row in the middle of a prompt, or of what a preempted request computes again, has no token. The host knows
        how long they are, and leaves it out.
        """
        owners = self._slots.snapshot()
        if all(server is None for server in owners.servers[context.idx_mapping_np]):
            return
        slots, positions = context.expanded_idx_mapping, context.pos
        if is_compiled(logits.device):
            place = None
        else:  # the engine's own tensors are written over; these are not
            place = slots, _ = slots.long(), positions + 1
        observed = self._recorder.record_logits(logits, None, slots, positions, owners)
        if observed is not None:
            self._pending.append((observed, place))


def _removing(original: Any) -> Any:
    def remove_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        slot = original(self, *args, **kwargs)
        _removed(self, slot)
        return slot

    return remove_request


@guarded("the V2 adapter's removals")
def _removed(state: Any, slot: object) -> None:
    known = _adapters.get(state.all_token_ids)
    adapter = None if known is None else known()
    if adapter is not None and isinstance(slot, int):
        adapter.removed(slot)
