"""What the engine's thread hands to the frame thread: a step's rows, and the tokens that are sampled from them.

A step has two phases, each a separate object: :class:`Step` when its logits were seen, :class:`SampledStep` when its
tokens are known. That is in the same step of the engine or in the next one; for some steps never.

Assumptions (the engine's thread keeps them):

- Both phases of a step are posted by one thread, the first one first, each at most once; steps in the order in which
  they were seen. The second phase of a step may come after the first one of later steps.
- Nobody writes to a table's memory or to its owners once it is posted. A table on its way from a device is written by
  that device until it has ``arrived``.

Guarantees:

- Phases are immutable: their fields are never assigned again, so both threads may read them without a lock. What the
  frame thread notes of a step (whether its rows were sent) it keeps in objects that only it and its ``post`` see.
- ``words`` of a table may be read in any thread once it has ``arrived``, and asking waits for nothing.
- The frame thread only reads tables; frames are made from copies.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from corevital.frames.layout import ROW
from corevital.steps.slots import Owners

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

Numbers: TypeAlias = "torch.Tensor | list[int]"
"""``[rows]`` int, where the logits are, or on the host."""

UNKNOWN: Final = -2
"""In place of a token that will never be known: no record is sent for it."""

WORDS: Final = ROW.itemsize // 4
SLOT, POSITION, STATISTICS, LIKELIEST = (
    ROW.fields["key"][1] // 4 + 1,  # type: ignore[index]
    ROW.fields["index"][1] // 4,  # type: ignore[index]
    ROW.fields["nan_count"][1] // 4,  # type: ignore[index]
    ROW.fields["topk_ids"][1] // 4,  # type: ignore[index]
)
"""Words of a row that is on its way. In the place of its key, two words, the second is its slot, and in that of its
index stands its position in the sequence (see :class:`~corevital.steps.slots.Owners`)."""


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
        return self.done is None or bool(self.done.query())


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


@dataclass(slots=True, eq=False)
class Step:
    """First phase: rows that tokens are about to be sampled from, as the engine's thread has seen them.

    Attributes:
        rows: their statistics, as wide as :data:`ROW`.
        where: slots and positions of the rows, where the table has none.
        owners: whose the slots were.
    """

    rows: Final[Columns]
    where: Final[tuple[list[int], list[int]] | None]
    owners: Final[Owners]

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


@dataclass(slots=True, eq=False)
class SampledStep:
    """Second phase: the tokens that were sampled from a step's rows.

    Attributes:
        step: the step.
        tokens: ``[rows, 3]``: the token; and as the bits of float32 the kept logits of it and of the row's likeliest
            token, NaN where they were not kept.
    """

    step: Final[Step]
    tokens: Final[Columns]


class Part(NamedTuple):
    """What of a step is sent together.

    Attributes:
        step: the step.
        has_rows: its rows are sent, and not only its tokens.
        tokens: those of :class:`SampledStep`; None where they are not known yet.
    """

    step: Step
    has_rows: bool
    tokens: Columns | None

    @classmethod
    def of(cls, posted: Step | SampledStep) -> Part:
        """One phase by itself."""
        return cls(posted, True, None) if isinstance(posted, Step) else cls(posted.step, False, posted.tokens)

    @property
    def arrived(self) -> bool:
        """Whether all of it may be read. Does not wait."""
        return self.step.rows.arrived and (self.tokens is None or self.tokens.arrived)

    def token_words(self) -> Array:
        """``[rows, 3]`` int32 of :class:`SampledStep`; :data:`UNKNOWN` tokens where they are not known yet."""
        return np.full((self.step.size, 3), UNKNOWN, np.int32) if self.tokens is None else self.tokens.words
