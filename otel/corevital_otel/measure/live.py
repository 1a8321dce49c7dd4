"""One sequence on its way: what is known of it between its admission and its report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from corevital.frames.layout import Source
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital.supported import CaptureMode
from corevital_otel.report import Admission

Array = npt.NDArray[Any]


@dataclass(slots=True, eq=False)
class LiveSequence:
    """One admitted sequence that has not been reported yet.

    Attributes:
        capture: the capture mode that applies.
        slot: its window, negative before its first record.
        source: where its logits were seen, None before its first record.
        outcome, tokens, finished_at: its end, once the frontend has reported it; ``tokens`` are the client's.
        facts: what the engine's core has sent of it.
        deadline: the next time at which it is looked at even if no record comes.
        columns: of the per-token values, those that are kept: those of its series if that may be wanted, all if its
            segments may be known, or none.
        chunks: folded per-token values ``[columns, CHUNK]``.
        likeliest: the likeliest tokens of the first folded chunks, ``[CHUNK, k]`` of ``kept.LIKELIEST``.
        checksum: CRC-32 of the tokens folded, by which they are compared with the client's.
        unknown: folded tokens that no ``sampled`` record named.
        counted: tokens that are in ``Windows.fresh``, or were.
    """

    key: int
    admitted: Admitted
    admission: Admission
    capture: CaptureMode
    columns: int = 0
    slot: int = -1
    source: Source | None = None
    outcome: Finished | None = None
    tokens: Array | None = None
    finished_at: float = 0.0
    facts: CoreFacts | None = None
    deadline: float = math.inf
    chunks: list[Array] = field(default_factory=list)
    likeliest: list[Array] = field(default_factory=list)
    checksum: int = 0
    unknown: int = 0
    counted: int = 0

    @property
    def length(self) -> int | None:
        """Tokens the client got; None while the sequence runs."""
        return None if self.tokens is None else len(self.tokens)
