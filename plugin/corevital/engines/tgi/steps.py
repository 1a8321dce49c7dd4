"""A step of the shard: the logits that tokens are sampled from, and which tokens these are.

Logits come from the first warper of a token chooser: once for a whole batch and each of its drafts, or, where every
request has its own chooser, once for each row. Tokens come from the stopping criterion of each request, called with
every token that counts and with no other: not with a rejected draft, nor with what a part of a prompt gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import torch

from corevital.engines.tgi.engine import carried, observe, source
from corevital.engines.tgi.watch import Sequence, Watch
from corevital.frames.layout import REJECTED
from corevital.frames.sender import FrameSender
from corevital.guard import guarded
from corevital.steps.device import can_serve, make_current, recorder_for
from corevital.steps.frame_thread import FrameThread
from corevital.steps.recorder import Recorder
from corevital.steps.slots import Owners

_ROWS: Final = 512
"""Rows of a step at most. TGI bounds tokens instead of requests, so nothing says how many there will be."""

_UNCLAIMED: Final = 0.05
"""Share of a GPU's memory that TGI leaves free. Logits are kept for no longer than their own step."""

_NO_SLOT: Final = -1


@dataclass(slots=True)
class _Step:
    """One call of ``generate_token``.

    Attributes:
        rows: whose each row of the batch is; None: nobody's that is measured.
        row_of: a row by the ``id`` of its stopping criterion.
        tokens: those of each row that count.
        ends: the ``FinishReason`` of rows that have ended.
        drafts: logits ``[rows, vocab]`` of the batch, for the next token and for each draft.
        own: logits ``[1, vocab]`` of a row, by row.
        unclaimed: such logits, whose row is known with its token.
        is_lost: there was no memory for some of its logits.
    """

    rows: list[Sequence | None]
    row_of: dict[int, int]
    tokens: list[list[int]]
    ends: dict[int, int] = field(default_factory=dict)
    drafts: list[torch.Tensor] = field(default_factory=list)
    own: dict[int, torch.Tensor] = field(default_factory=dict)
    unclaimed: torch.Tensor | None = None
    is_lost: bool = False


class Steps:
    """The adapter of a shard. The thread of its event loop calls it.

    Args:
        watch: the sequences.
        model: the shard's.
    """

    def __init__(self, watch: Watch, model: Any) -> None:
        self._watch = watch
        self._model = model
        self._recorder: Recorder | None = None
        self._has_tried = False
        self._step: _Step | None = None
        self._owned: tuple[list[Sequence | None], Owners, list[int]] | None = None

    def record(self, recorder: Recorder) -> None:
        """What takes logits and tokens from here on."""
        self._recorder = recorder

    @guarded("a step of the shard")
    def begins(self, batch: Any) -> None:
        """A batch is about to be computed."""
        self._step = None
        if not self._watch.is_serving:
            return
        rows = self._watch.admit(batch)
        if any(row is not None and carried(row) is not None for row in rows):
            criteria = {id(criterion): row for row, criterion in enumerate(batch.stopping_criterias)}
            self._step = _Step(rows, criteria, [[] for _ in rows])

    @guarded("a step of the shard")
    def sees(self, scores: torch.Tensor, changes: bool, is_own: bool) -> None:
        """Logits that tokens are about to be sampled from.

        Args:
            scores: ``[rows, vocab]``.
            changes: others may change this memory before the step ends.
            is_own: of one row alone.
        """
        if not self._has_tried:  # in the warm-up, so that TGI counts our memory as its own
            self._has_tried = True
            self._start(scores)
        step = self._step
        if step is None or self._recorder is None:
            return
        copied = self._recorder.copy(scores) if changes or scores.dtype is torch.float16 else scores
        if copied is None:
            step.is_lost = True
        elif is_own:
            step.unclaimed = copied
        else:
            step.drafts.append(copied)

    @guarded("a token of the shard")
    def samples(self, criterion: Any, token: Any, reason: Any) -> None:
        """A token that counts, and the ``FinishReason`` where it ends its sequence."""
        step = self._step
        row = None if step is None else step.row_of.get(id(criterion))
        if step is None or row is None:
            return
        step.tokens[row].append(int(token))
        if reason is not None:
            step.ends[row] = int(reason)
        if step.unclaimed is not None:
            step.own[row], step.unclaimed = step.unclaimed, None

    def fails(self) -> None:
        """The step has failed: the router gets none of its tokens."""
        self._step = None

    @guarded("a step of the shard")
    def ends(self) -> None:
        """The step has ended; nobody has changed its logits."""
        step, self._step = self._step, None
        if step is None:
            return
        try:
            self._put(step)
        finally:
            for row, sequence in enumerate(step.rows):
                if sequence is not None:
                    self._watch.adds(sequence, step.tokens[row], step.ends.get(row))

    def _put(self, step: _Step) -> None:
        if step.is_lost and self._recorder is not None:  # whose the others are is not known
            self._recorder.lose(self._owners(step.rows)[0], sum(map(len, step.tokens)))
            return
        if step.own:
            rows = list(step.own)
            self._record(step, rows, torch.cat(list(step.own.values())), 0)
        every = range(len(step.rows))
        for draft, logits in enumerate(step.drafts):
            if any(len(tokens) > draft for tokens in step.tokens):
                self._record(step, every, logits, draft)

    def _record(self, step: _Step, rows: Any, logits: torch.Tensor, draft: int) -> None:
        if self._recorder is None:
            return
        owners, slots = self._owners(step.rows)
        positions, tokens = [], []
        for row in rows:
            sequence, sampled = step.rows[row], step.tokens[row]
            positions.append(0 if sequence is None else len(sequence.tokens) + draft)
            tokens.append(sampled[draft] if draft < len(sampled) else REJECTED)
        observed = self._recorder.record_logits(logits, None, [slots[row] for row in rows], positions, owners)
        if observed is not None:
            self._recorder.record_tokens(observed, tokens)

    def _owners(self, rows: list[Sequence | None]) -> tuple[Owners, list[int]]:
        """The owners of a batch's rows, and the slot of each; the same objects while the batch is the same."""
        if self._owned is None or self._owned[0] != rows:
            stamps = [None if row is None else carried(row) for row in rows]
            found = [stamp for stamp in stamps if stamp is not None]
            owners, taken = Owners.of(found, [1.0] * len(found)), iter(range(len(found)))
            slots = [_NO_SLOT if stamp is None else next(taken) for stamp in stamps]
            if len(found) < len(rows):
                owners = replace(owners, server=None)
            self._owned = rows, owners, slots
        return self._owned[1:]

    def _start(self, scores: torch.Tensor) -> None:
        """Load and compile what steps of such logits need."""
        vocab, device = scores.shape[-1], scores.device
        recorder = None
        if can_serve(vocab, device):
            thread = FrameThread(FrameSender(source(self._model)), partial(make_current, device))
            recorder = recorder_for(vocab, _ROWS, _UNCLAIMED, device, thread.post, thread.lose)
            if recorder is None:
                thread.close()
        if recorder is None:
            self._watch.measures = False
        else:
            observe(self, recorder)
