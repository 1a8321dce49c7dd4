"""What the engine's thread hands to the courier's: the rows of a step, and the tokens that are sampled from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from corevital.engines.occupants import Occupants
from corevital.frames.record import ROW

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

Numbers: TypeAlias = "torch.Tensor | list[int]"
"""``[rows]`` int, where the logits are, or on the host."""

UNKNOWN: Final = -2
"""Stands for a token that nothing will ever be known of: no record is sent for it."""

WORDS: Final = ROW.itemsize // 4
SLOT, POSITION, STATISTICS, LIKELIEST = (
    ROW.fields["key"][1] // 4 + 1,  # type: ignore[index]
    ROW.fields["index"][1] // 4,  # type: ignore[index]
    ROW.fields["nan_count"][1] // 4,  # type: ignore[index]
    ROW.fields["topk_ids"][1] // 4,  # type: ignore[index]
)
"""Words of a row that is on its way. In the place of its key, two words, the second is its slot, and in that of its
index stands its position in the sequence (see :class:`Occupants`)."""


class Table(NamedTuple):
    """A table on its way to the host.

    Attributes:
        tensor: ``[rows, words]`` int32 on the host; not to be read before ``done``.
        done: when the copy from the device is, None if there was none.
    """

    tensor: torch.Tensor
    done: torch.cuda.Event | None = None

    @property
    def size(self) -> int:
        """Its rows."""
        return self.tensor.shape[0]

    @property
    def words(self) -> Array:
        """``[rows, words]`` int32, the tensor's own memory."""
        return self.tensor.numpy()

    @property
    def arrived(self) -> bool:
        """Whether ``words`` may be read. Does not wait."""
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]


class Stretch(NamedTuple):
    """A table that is part of another one on the host.

    Attributes:
        whole: ``[…, words]`` int32.
        start: its first row there.
        stop: the one after its last.
    """

    whole: Array
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Its rows."""
        return self.stop - self.start

    @property
    def words(self) -> Array:
        """``[rows, words]`` int32, the memory itself."""
        return self.whole[self.start : self.stop]

    @property
    def arrived(self) -> bool:
        """That it may be read."""
        return True


class Kept(NamedTuple):
    """Where an engine keeps the tokens of its sequences, for tables that know their rows' slots and positions.

    Attributes:
        known: ``[slots, tokens]`` int32 on the device.
        total: ``[slots]`` int32, how many there are of each.
    """

    known: torch.Tensor
    total: torch.Tensor


class Columns(Protocol):
    """A table, or columns of one, on the host or on its way there."""

    @property
    def size(self) -> int:
        """Its rows."""

    @property
    def words(self) -> Array:
        """``[rows, words]`` int32, the memory itself."""

    @property
    def arrived(self) -> bool:
        """Whether ``words`` may be read. Does not wait."""


class Part(NamedTuple):
    """What of a step is sent together.

    Attributes:
        step: the step.
        fresh: its rows are sent, and not only what is known of their tokens.
        tokens: likewise sent, None where they are not known yet.
    """

    step: Step
    fresh: bool
    tokens: Columns | None

    @property
    def arrived(self) -> bool:
        """Whether all of it may be read. Does not wait."""
        return self.step.rows.arrived and (self.tokens is None or self.tokens.arrived)

    def told(self) -> Array:
        """``[rows, 3]`` int32, see :class:`Step`; unknown tokens where they are not known yet."""
        return np.full((self.step.size, 3), UNKNOWN, np.int32) if self.tokens is None else self.tokens.words


@dataclass(slots=True, eq=False)
class Step:
    """Rows that tokens are sampled from together, and those tokens, which are known a step later.

    Attributes:
        rows: their statistics, as wide as :data:`ROW`.
        where: slots and positions of the rows, where the table has none.
        occupants: who was in the slots.
        tokens: once they are known ``[rows, 3]``: the token; and as the bits of float32 the kept logits of it and of
            the row's likeliest token, NaN where they were not kept.
        awaited: everything of it has left but its tokens.
    """

    rows: Columns
    where: tuple[list[int], list[int]] | None
    occupants: Occupants
    tokens: Columns | None = None
    awaited: bool = False

    @property
    def size(self) -> int:
        """How many rows it has."""
        return self.rows.size

    @property
    def deep(self) -> int:
        """How many rows a sequence may have in it."""
        if self.where is None:
            return self.size
        slots = self.where[0]
        return 1 if len(set(slots)) == len(slots) else max(Counter(slots).values())

    def take(self) -> Part:
        """What of it is to be sent now."""
        part = Part(self, not self.awaited, self.tokens)
        self.awaited = part.tokens is None
        return part
