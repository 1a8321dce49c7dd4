"""Stand-ins for vLLM's two model runners, which an adapter cannot distinguish from them.

What they share: a forward pass writes over the logits of the one before, the sampler works in place, and the host runs
ahead of the device by a bounded number of steps. Sequences end and others take their places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from integration.gpu.model import Model, Truth, sample
from integration.gpu.place import SERVER, Place
from integration.gpu.records import Wanted

from corevital.engines.vllm.runner_v1 import V1Adapter
from corevital.engines.vllm.runner_v2 import V2Adapter
from corevital.engines.vllm.stamps import EXTRA_ARG
from corevital.frames.stamp import Stamp
from corevital.steps.device_tables import to_device
from corevital.steps.recorder import Recorder

TEMPERATURES = (0.5, 0.7, 1.0)
LONGEST = 40
"""Steps of a sequence at most, where sequences end."""

_TOKENS = 8192
"""Room for a slot's sequence."""


class Batch(NamedTuple):
    """What an engine serves.

    Attributes:
        rows: sequences at once.
        measured: how many of them ask to be measured.
        ends: whether sequences end.
        top_k: of the sampler; 0: it masks nothing.
        drafts: rows more of each sequence, under Model Runner V2.
        ahead: steps that the host may be ahead of the device.
    """

    rows: int
    measured: int
    ends: bool = True
    top_k: int = 0
    drafts: int = 0
    ahead: int = 2


def params(key: int | None, temperature: float) -> Any:
    """What adapters read of a ``SamplingParams``; None: not to be measured."""
    extra_args = {} if key is None else {EXTRA_ARG: str(Stamp(SERVER, key))}
    plain = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "temperature": temperature}
    return SimpleNamespace(extra_args=extra_args, **plain)


class _Sequence:
    """One that is generated. Its output is the engine's own list, whose last token may be a placeholder."""

    def __init__(self, key: int, temperature: float, length: int) -> None:
        self.key, self.temperature, self.length = key, temperature, length
        self.output: list[int] = []


class _Engine:
    def __init__(self, place: Place, model: Model, batch: Batch, seed: int) -> None:
        self.place, self.batch = place, batch
        self._model = model
        self._rng = np.random.default_rng(seed)
        self._keys = 0
        self._queued: deque[torch.cuda.Event] = deque()
        self._truths: list[Callable[[], dict[tuple[int, int], Wanted]]] = []

    def _sequence(self) -> _Sequence:
        self._keys += 1
        length = int(self._rng.integers(1, LONGEST)) if self.batch.ends else 1 << 40
        return _Sequence(self._keys, float(self._rng.choice(TEMPERATURES)), length)

    def _event(self) -> torch.cuda.Event | None:
        return None if self.place.dry else torch.cuda.current_stream(self.place.device).record_event()

    def _wait_for_older(self) -> None:
        """Keep the host within its bound, as an engine does that needs a step's tokens to plan a later one."""
        if (event := self._event()) is not None:
            self._queued.append(event)
            while len(self._queued) >= self.batch.ahead:
                self._queued.popleft().synchronize()

    def wanted(self) -> dict[tuple[int, int], Wanted]:
        """What should have left for each (key, output index) of the steps whose truth was kept."""
        return {at: wanted for truth in self._truths for at, wanted in truth().items()}


class V1Engine(_Engine):
    """A batch with output lists, whose tokens come a step late, as under asynchronous scheduling.

    With any logits processor vLLM waits for the tokens of the step before, once the forward pass is queued; without
    one it does not.

    Args:
        place: where.
        model: the forward pass.
        batch: what is served.
        recorder: takes what the adapter sees; None: an engine without the plugin.
        seed: of what is drawn on the host.
    """

    def __init__(self, place: Place, model: Model, batch: Batch, recorder: Recorder | None, seed: int = 0) -> None:
        super().__init__(place, model, batch, seed)
        self.adapter = None if recorder is None else V1Adapter(recorder)
        self._slots = [self._sequence() for _ in range(batch.rows)]
        self._joined = list(range(batch.rows))
        self._temperatures = torch.tensor([s.temperature for s in self._slots], device=place.device)
        self._late: tuple[torch.Tensor, torch.cuda.Event | None, list[_Sequence]] | None = None

    def _update(self) -> Any:
        if not self._joined:
            return None
        added = []
        for slot in self._joined:
            sequence = self._slots[slot]
            key = sequence.key if slot < self.batch.measured else None
            added.append((slot, params(key, sequence.temperature), [1], sequence.output))
        self._joined = []
        return SimpleNamespace(removed=[], added=added, moved=[])

    def _take_late(self) -> None:
        """Put the step before's tokens in the place of their placeholders."""
        if self._late is None:
            return
        host, done, sequences = self._late
        self._late = None
        if done is not None:
            done.synchronize()
        for slot, (sequence, token) in enumerate(zip(sequences, host.tolist(), strict=True)):
            if self._slots[slot] is sequence:  # those of a sequence that has left stay placeholders
                sequence.output[-1] = token

    def step(self, with_truth: bool = False) -> None:
        """One step; ``with_truth`` keeps what should leave of it."""
        update = self._update()
        if self.adapter is not None:
            self.adapter.update_state(update)
        logits = self._model().float()
        if self.adapter is not None:
            self._take_late()
            self.adapter.apply(logits)
        truth = Truth(logits) if with_truth else None
        tokens = sample(logits, self._temperatures, self.batch.top_k)
        if truth is not None:
            self._keep(truth, tokens)
        host = torch.empty(self.batch.rows, dtype=torch.int64, pin_memory=not self.place.dry)
        host.copy_(tokens, non_blocking=True)
        self._take_late()
        self._late = host, self._event(), list(self._slots)
        for slot, sequence in enumerate(self._slots):
            sequence.output.append(-1)
            if len(sequence.output) >= sequence.length:
                self._slots[slot] = new = self._sequence()
                self._temperatures[slot] = new.temperature
                self._joined.append(slot)

    def _keep(self, truth: Truth, tokens: torch.Tensor) -> None:
        logprob = truth.logprob(tokens)
        measured = self._slots[: self.batch.measured]
        rows = [(sequence, len(sequence.output)) for sequence in measured]

        def values() -> dict[tuple[int, int], Wanted]:
            columns = (column.tolist() for column in (truth.logsumexp, truth.entropy, tokens, logprob))
            found = {}
            for (sequence, index), *row in zip(rows, *columns, strict=False):
                # a placeholder that nobody replaced: the sequence has left, and its table has to do
                is_told = sequence.output[index] != -1
                found[sequence.key, index] = Wanted(*row, is_told=is_told)
            return found

        self._truths.append(values)


class V2Engine(_Engine):
    """Slots whose state is on the device, used again without a word; several rows a sequence where there are drafts.

    Args: as for :class:`V1Engine`.
    """

    def __init__(self, place: Place, model: Model, batch: Batch, recorder: Recorder | None, seed: int = 0) -> None:
        super().__init__(place, model, batch, seed)
        device, slots = place.device, batch.rows
        self._known = torch.zeros(slots, _TOKENS, dtype=torch.int32, device=device)
        self._total = torch.zeros(slots, dtype=torch.int32, device=device)
        self._prompt = np.zeros(slots, np.int32)
        states: Any = SimpleNamespace(
            max_num_reqs=slots,
            all_token_ids=SimpleNamespace(gpu=self._known),
            total_len=SimpleNamespace(gpu=self._total),
            prompt_len=SimpleNamespace(np=self._prompt),
            prefill_len=SimpleNamespace(np=self._prompt),
        )
        self.adapter = None if recorder is None else V2Adapter(recorder, states)
        self._temperatures = torch.ones(slots, device=device)
        self._slots: list[_Sequence | None] = [None] * slots
        self._left = np.zeros(slots, np.int64)

    def _admit(self) -> None:
        for slot in np.flatnonzero(self._left <= 0).tolist():
            self._slots[slot] = sequence = self._sequence()
            self._left[slot], prompt = sequence.length, int(self._rng.integers(1, 9))
            self._prompt[slot] = prompt
            if self.adapter is not None:
                key = sequence.key if slot < self.batch.measured else None
                self.adapter.add_request(slot, params(key, sequence.temperature))
            # queued behind what the adapter reads of the slot's former occupant
            self._known[slot].fill_(-7)
            self._total[slot] = prompt
            self._temperatures[slot] = sequence.temperature

    def step(self, with_truth: bool = False) -> None:
        """One step; ``with_truth`` keeps what should leave of it."""
        self._admit()
        if self.adapter is not None:
            self.adapter.apply_staged_writes()
        count, each = self.batch.rows, 1 + self.batch.drafts
        logits = self._model().float()
        order = self._rng.permutation(count)
        slots = to_device(order.tolist(), self.place.device).long()
        rows = slots.repeat_interleave(each, output_size=count * each)
        draft = torch.arange(count * each, device=self.place.device) % each
        positions = self._total[rows].long() - 1 + draft
        if self.adapter is not None and self.batch.measured:  # nobody else asked to be shown logits
            context: Any = SimpleNamespace(idx_mapping_np=order, expanded_idx_mapping=rows, pos=positions)
            self.adapter.apply(logits, context)
        truth = Truth(logits) if with_truth else None
        tokens = sample(logits, self._temperatures[rows], self.batch.top_k)
        accepted = (
            (torch.rand(count, device=self.place.device) * each).long() + 1 if each > 1 else torch.ones_like(slots)
        )
        if truth is not None:
            is_kept = draft < accepted.repeat_interleave(each, output_size=count * each)
            self._keep(truth, tokens, is_kept, positions, np.repeat(order, each).tolist())
        at = self._total[slots].long()[:, None] + torch.arange(each, device=self.place.device)
        self._known[slots[:, None], at.clamp_max(_TOKENS - 1)] = tokens.view(count, each).int()
        self._total[slots] += accepted.int()
        self._left -= 1
        self._wait_for_older()

    def _keep(
        self, truth: Truth, tokens: torch.Tensor, is_kept: torch.Tensor, positions: torch.Tensor, slots: Sequence[int]
    ) -> None:
        logprob = truth.logprob(tokens)
        keys = [sequence.key if sequence and slot < self.batch.measured else None for slot, sequence in
                ((slot, self._slots[slot]) for slot in slots)]  # fmt: skip
        prompts = self._prompt[slots].tolist()

        def values() -> dict[tuple[int, int], Wanted]:
            columns = (c.tolist() for c in (is_kept, positions, truth.logsumexp, truth.entropy, tokens, logprob))
            found = {}
            for key, prompt, kept, position, *row in zip(keys, prompts, *columns, strict=True):
                if kept and key is not None:
                    found[key, position + 1 - prompt] = Wanted(*row)
            return found

        self._truths.append(values)


ENGINES: dict[str, Callable[..., Any]] = {"V1": V1Engine, "V2": V2Engine}
