"""The rows of one call of ``generate()``: each is a sequence, from the first step to its own end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from corevital.engines.transformers.asked import Asked
from corevital.engines.transformers.engine import ENGINE, RUNNER, carried, carry, observe, reports, version
from corevital.frames.layout import REJECTED
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished, Observer
from corevital.steps.slots import Slots

if TYPE_CHECKING:
    import torch

    from corevital.steps.recorder import Observed, Recorder

_NO_SLOT: Final = -1


@dataclass(slots=True)
class _Row:
    """A sequence. ``params`` has its stamp."""

    params: dict[str, Any] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    runs: bool = True


class Rows:
    """The adapter of one call. The thread that called ``generate()`` calls it.

    Args:
        recorder_of: of such logits; None where they cannot be measured.
        observer: called with the sequences.
        model: the model.
        asked: what the call asks for.
        capture: the capture mode of its sequences.
    """

    def __init__(
        self,
        recorder_of: Callable[[torch.Tensor], Recorder | None],
        observer: Observer,
        model: Any,
        asked: Asked,
        capture: str | None,
    ) -> None:
        self._recorder_of = recorder_of
        self._recorder: Recorder | None = None
        self._observer = observer
        self._asked = asked
        self._capture = capture
        self._reports = reports(model)
        self._begun_ns = time.time_ns()
        self._rows: list[_Row] = []
        self._slots: Slots | None = None
        self._observed: Observed | None = None
        self.ids: list[str] = []
        """The engine's id of each sequence, in the order of the rows."""

    def record(self, recorder: Recorder) -> None:
        """What takes logits and tokens from here on."""
        self._recorder = recorder

    def see_logits(self, input_ids: torch.Tensor, scores: torch.Tensor) -> None:
        """A step's logits, ``[rows, vocab]``, and the tokens before them."""
        if self._slots is None:
            recorder = self._recorder_of(scores)
            self._slots = self._admit(*input_ids.shape) if recorder is not None else Slots(len(scores))
            if recorder is not None:
                observe(self, recorder)
        if self._recorder is None or not any(row.runs for row in self._rows):
            return
        slots = [slot if row.runs else _NO_SLOT for slot, row in enumerate(self._rows)]
        positions = [len(row.tokens) for row in self._rows]
        self._observed = self._recorder.record_logits(scores, None, slots, positions, self._slots.snapshot())

    def see_tokens(self, tokens: list[int], ended: set[int]) -> None:
        """The tokens sampled from these logits, a row each; and the rows that a criterion has ended."""
        observed, self._observed = self._observed, None
        if self._recorder is None:
            return
        if observed is not None:
            known = [token if row.runs else REJECTED for row, token in zip(self._rows, tokens, strict=True)]
            self._recorder.record_tokens(observed, known)
        for slot, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            if row.runs:
                row.tokens.append(token)
                if token in self._asked.ends:
                    self._end(row, "stop", CoreFacts(stop_reason=str(token)))
                elif slot in ended:
                    self._end(row, "stop")

    def end(self, reason: str) -> None:
        """``generate()`` has returned, or failed: rows that still ran end for this reason."""
        for row in self._rows:
            self._end(row, self._late(row) if reason == "length" else reason)

    def _late(self, row: _Row) -> str:
        """Why a row ended with the call: the length limit, where none of time may have been reached before it."""
        most = self._asked.max_tokens
        return "stop" if self._asked.may_time_out and (most is None or len(row.tokens) < most) else "length"

    def _end(self, row: _Row, reason: str, core: CoreFacts | None = None) -> None:
        if not row.runs:
            return
        row.runs = False
        if (stamp := carried(row.params)) is not None:
            outcome = Finished(
                reason=reason, token_ids=tuple(row.tokens), end_ns=time.time_ns(), core=core or CoreFacts()
            )
            self._observer.finish(stamp.key, outcome)

    def _admit(self, count: int, length: int) -> Slots:
        asked, slots, name = self._asked, Slots(count), ""
        lengths = asked.prompt_tokens or []
        for slot in range(count):
            prompt, sequence = divmod(slot, asked.choices)
            if sequence == 0:
                name = f"generate-{secrets.token_hex(8)}"
            row = _Row()
            self._rows.append(row)
            if not self._reports(slot):
                continue
            self.ids.append(f"{name}-{sequence}")
            stamp = self._observer.admit(
                Admitted(
                    request_id=name,
                    engine_id=self.ids[-1],
                    sequence=sequence,
                    operation="text_completion",
                    model=asked.model,
                    arrival_ns=self._begun_ns,
                    prompt_tokens=lengths[prompt] if prompt < len(lengths) else length,
                    temperature=asked.temperature,
                    top_p=asked.top_p,
                    top_k=asked.top_k,
                    max_tokens=asked.max_tokens,
                    capture=self._capture,
                    choices=asked.choices,
                    stream=False,
                    engine=ENGINE,
                    engine_version=version(),
                    runner=RUNNER,
                    stage=asked.stage,
                )
            )
            carry(row.params, stamp)
            if stamp is not None:
                slots.put(slot, stamp, 1.0, 1, 0)  # later processors write into new tensors: no scale
        return slots
