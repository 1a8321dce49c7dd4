"""Whose request is in which slot of the engine's batch, in a form that outlives the step it was true for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital.frames.stamp import Stamp

Array = npt.NDArray[Any]

GREEDY_BELOW: Final = 1e-5
"""Temperatures under this are greedy, and logits are not scaled then (``_SAMPLING_EPS`` of vLLM's samplers)."""


@dataclass(frozen=True, slots=True)
class Occupants:
    """The occupants of slots at one moment. Never written to.

    Attributes:
        servers: ``[slots]`` object, id of the server that measures the occupant, None where nobody does.
        keys: ``[slots]`` uint64, the occupants' sequences.
        bases: ``[slots]`` int64, output tokens that a sequence had before its present prompt (streaming input).
        scales: ``[slots]`` float32, what the sampler divides the logits by; NaN: it changes them in other ways too.
    """

    servers: Array
    keys: Array
    bases: Array
    scales: Array

    @classmethod
    def of(cls, stamps: Sequence[Stamp], scales: Sequence[float]) -> Occupants:
        """Slots 0, 1, … filled with these."""
        servers = np.empty(len(stamps), object)
        servers[:] = [stamp.server for stamp in stamps]
        keys = np.array([stamp.key for stamp in stamps], np.uint64)
        bases = np.array([stamp.base for stamp in stamps], np.int64)
        return cls(servers, keys, bases, np.array(scales, np.float32))


class Slots:
    """The occupants of a fixed number of slots, as they change.

    Args:
        size: number of slots.
    """

    def __init__(self, size: int) -> None:
        self._now = Occupants(
            np.full(size, None, object), np.zeros(size, np.uint64), np.zeros(size, np.int64), np.ones(size, np.float32)
        )
        self._kept = False  # somebody holds self._now

    def put(self, slot: int, stamp: Stamp | None, scale: float = 1.0) -> None:
        """Whoever was in ``slot`` is gone, and this sequence is in it; nobody's if ``stamp`` is None."""
        if self._kept:
            now = self._now
            self._now = Occupants(now.servers.copy(), now.keys.copy(), now.bases.copy(), now.scales.copy())
            self._kept = False
        self._now.servers[slot] = None if stamp is None else stamp.server
        if stamp is not None:
            self._now.keys[slot], self._now.bases[slot] = stamp.key, stamp.base
            self._now.scales[slot] = scale

    def snapshot(self) -> Occupants:
        """The occupants now."""
        self._kept = True
        return self._now


def scale(temperature: float) -> float:
    """What a sampler divides the logits by at this temperature."""
    return 1.0 if temperature < GREEDY_BELOW else temperature
