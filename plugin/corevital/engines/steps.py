"""What the engine's thread hands to the courier's: the rows of a step, and the tokens that are sampled from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from corevital.engines.occupants import Occupants
from corevital.frames.record import ROW

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

UNKNOWN: Final = -2
"""Stands for a token that nothing will ever be known of: no record is sent for it."""

SLOT, POSITION, STATISTICS = (
    ROW.fields["key"][1] // 4 + 1,  # type: ignore[index]
    ROW.fields["index"][1] // 4,  # type: ignore[index]
    ROW.fields["nan_count"][1] // 4,  # type: ignore[index]
)
"""Words of a row that is on its way. In the place of its key, two words, the second is its slot, and in that of its
index stands its position in the sequence (see :class:`Occupants`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table on its way to the host.

    Attributes:
        words: ``[rows, words]`` int32 on the host; not to be read before ``done``.
        done: when the copy from the device is, None if there was none.
    """

    words: Array
    done: torch.cuda.Event | None = None

    @property
    def arrived(self) -> bool:
        """Whether ``words`` may be read. Does not wait."""
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]

    def read(self, rows: Array) -> Array:
        """The words, for a table of tokens."""
        return self.words


@dataclass(slots=True, eq=False)
class Kept:
    """Logits that outlive their step.

    Attributes:
        logits: ``[R, vocab]`` as returned to the engine, whose sampler works on it in place; None once let go of.
        at: ``[rows]`` int64, which of its rows; None for all of them.
    """

    logits: torch.Tensor | None
    at: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Unread:
    """A table of tokens that is made when it is read.

    Attributes:
        tokens: ``[rows]``.
        kept: the logits they were sampled from, on the host.
    """

    tokens: list[int]
    kept: Kept

    arrived: Final = True

    def read(self, rows: Array) -> Array:
        """See :class:`Step`. Reads the logits of tokens that are not among their rows' likeliest, and lets them go."""
        words = np.empty((len(rows), 3), np.int32)
        words[:, 0] = self.tokens
        floats = words.view(np.float32)
        floats[:, 1:] = np.nan
        logits, self.kept.logits = self.kept.logits, None
        table = rows.view(ROW)[:, 0]["topk_ids"]  # [rows, k]
        outside = np.flatnonzero((table != words[:, :1]).all(axis=1) & (words[:, 0] >= 0))
        if logits is not None and len(outside):
            at = outside if self.kept.at is None else self.kept.at.numpy()[outside]
            ids = np.stack((words[outside, 0], table[outside, 0]), axis=1)
            floats[outside, 1:] = logits.numpy()[at[:, None], ids]
        return words


class Part(NamedTuple):
    """What of a step is sent together.

    Attributes:
        step: the step.
        fresh: its rows are sent, and not only what is known of their tokens.
        tokens: likewise sent, None where they are not known yet.
    """

    step: Step
    fresh: bool
    tokens: Table | Unread | None

    @property
    def arrived(self) -> bool:
        """Whether all of it may be read. Does not wait."""
        return self.step.rows.arrived and (self.tokens is None or self.tokens.arrived)

    def rows(self) -> Array:
        """``[rows, words]`` int32."""
        words = self.step.rows.words
        if self.step.where is not None:
            words[:, SLOT], words[:, POSITION] = self.step.where
        return words


@dataclass(slots=True, eq=False)
class Step:
    """Rows that tokens are sampled from together, and those tokens, which are known a step later.

    Attributes:
        rows: their statistics, as wide as :data:`ROW`.
        where: slots and positions of the rows, where the table has none.
        occupants: who was in the slots.
        tokens: once they are known ``[rows, 3]``: the token; and as the bits of float32 the kept logits of it and of
            the row's likeliest token, NaN where the row's table says as much.
        awaited: everything of it has left but its tokens.
    """

    rows: Table
    where: tuple[list[int], list[int]] | None
    occupants: Occupants
    tokens: Table | Unread | None = None
    awaited: bool = False

    def take(self) -> Part:
        """What of it is to be sent now."""
        part = Part(self, not self.awaited, self.tokens)
        self.awaited = part.tokens is None
        return part
