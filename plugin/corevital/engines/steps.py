"""What the engine's thread hands to the courier's: the rows of a step, and the tokens that are sampled from them."""

from __future__ import annotations

from collections import Counter
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


class Table(NamedTuple):
    """A table on its way to the host.

    Attributes:
        tensor: ``[rows, words]`` int32 on the host; not to be read before ``done``.
        done: when the copy from the device is, None if there was none.
    """

    tensor: torch.Tensor
    done: torch.cuda.Event | None = None

    @property
    def words(self) -> Array:
        """``[rows, words]`` int32, the tensor's own memory."""
        return self.tensor.numpy()

    @property
    def arrived(self) -> bool:
        """Whether ``words`` may be read. Does not wait."""
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]


class Told(NamedTuple):
    """A table of tokens that is made when it is read.

    Attributes:
        tokens: ``[rows]``.
        kept: ``[rows, 2]``, the other columns; see :class:`Step`.
    """

    tokens: list[int]
    kept: list[tuple[float, float]]

    @property
    def arrived(self) -> bool:
        """That it may be read."""
        return True

    @property
    def words(self) -> Array:
        """``[rows, 3]`` int32."""
        words = np.empty((len(self.tokens), 3), np.int32)
        words[:, 0], words.view(np.float32)[:, 1:] = self.tokens, self.kept
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
    tokens: Table | Told | None

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

    def told(self) -> Array:
        """``[rows, 3]`` int32, see :class:`Step`; unknown tokens where they are not known yet."""
        return np.full((len(self.step), 3), UNKNOWN, np.int32) if self.tokens is None else self.tokens.words


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

    rows: Table
    where: tuple[list[int], list[int]] | None
    occupants: Occupants
    tokens: Table | Told | None = None
    awaited: bool = False

    def __len__(self) -> int:
        return self.rows.tensor.shape[0]

    @property
    def deep(self) -> int:
        """How many rows a sequence may have in it."""
        return len(self) if self.where is None else max(Counter(self.where[0]).values(), default=0)

    def take(self) -> Part:
        """What of it is to be sent now."""
        part = Part(self, not self.awaited, self.tokens)
        self.awaited = part.tokens is None
        return part
