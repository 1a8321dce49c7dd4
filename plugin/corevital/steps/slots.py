"""Who owns each slot of the engine's batch: the sequence in it, and the server that measures that sequence.

A slot is the engine's place for a running sequence; it is given to another sequence when that one ends. Frames are made
a quarter of a second after a step, so each step keeps the :class:`Owners` of its moment, which never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital.frames.stamp import Stamp

Array = npt.NDArray[Any]

GREEDY_BELOW: Final = 1e-5
"""Temperatures under this are greedy, and logits are not scaled then (as engines' samplers have it)."""


@dataclass(frozen=True, slots=True)
class Owners:
    """The owners of slots at one moment. Never written to.

    Attributes:
        servers: ``[slots]`` object, id of the server that measures the owner; None: it is not measured.
        keys: ``[slots]`` uint64, the stamps' keys of the sequences.
        bases: ``[slots]`` int64, what makes the output index of a row from its position in the sequence.
        firsts: ``[slots]`` int64, the first position whose token counts; what is sampled before is thrown away.
        scales: ``[slots]`` float32, what the sampler divides the logits by; NaN: it changes them in other ways too.
        server: that of all of them, if it is one and each row of a step is of one of them and counts.
    """

    servers: Array
    keys: Array
    bases: Array
    firsts: Array
    scales: Array
    server: str | None = None

    @classmethod
    def of(cls, stamps: Sequence[Stamp], scales: Sequence[float]) -> Owners:
        """Slots 0, 1, … filled with these, whose positions are output indices since their present prompts."""
        servers = np.empty(len(stamps), object)
        servers[:] = [stamp.server for stamp in stamps]
        keys = np.array([stamp.key for stamp in stamps], np.uint64)
        bases = np.array([stamp.base for stamp in stamps], np.int64)
        only = stamps[0].server if len({stamp.server for stamp in stamps}) == 1 else None
        return cls(servers, keys, bases, np.zeros(len(stamps), np.int64), np.array(scales, np.float32), only)


_COLUMNS: Final = ("servers", "keys", "bases", "firsts", "scales")


class Slots:
    """The owners of a fixed number of slots, as they change.

    Args:
        size: number of slots.
    """

    def __init__(self, size: int) -> None:
        self._now = Owners(
            servers=np.full(size, None, object),
            keys=np.zeros(size, np.uint64),
            bases=np.zeros(size, np.int64),
            firsts=np.zeros(size, np.int64),
            scales=np.ones(size, np.float32),
        )
        self._kept = False  # a step holds self._now

    def clear(self, slot: int) -> None:
        """``slot`` has no owner any more."""
        self._writable().servers[slot] = None

    def put(self, slot: int, stamp: Stamp, scale: float, prompt_tokens: int, first: int) -> None:
        """A sequence is in ``slot``, the rows of whose prompt come first; see :class:`Owners`."""
        now = self._writable()
        now.servers[slot], now.keys[slot], now.scales[slot] = stamp.server, stamp.key, scale
        # the row that the first token is sampled from is that of the prompt's last
        now.bases[slot], now.firsts[slot] = stamp.base + 1 - prompt_tokens, first

    def _writable(self) -> Owners:
        if self._kept:
            now = self._now
            self._now = Owners(*(getattr(now, name).copy() for name in _COLUMNS))
            self._kept = False
        return self._now

    def snapshot(self) -> Owners:
        """The owners now."""
        self._kept = True
        return self._now


def scale(temperature: float) -> float:
    """What a sampler divides the logits by at this temperature."""
    return 1.0 if temperature < GREEDY_BELOW else temperature
