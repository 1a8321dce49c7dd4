"""From one step's logits to tables on their way to the host. What the adapters share.

An adapter calls :meth:`Emitter.observe` with the logits that tokens are about to be sampled from, and
:meth:`Emitter.settle` once those tokens are known, which is a step later. The logits are kept: the sampler scales them
in place by the temperature and may mask them, never at the sampled token, so they give its exact log-probability,
``temperature * kept[token] - logsumexp``. This is checked on each row against its own maximum, which nothing masks:
had another processor copied or changed the row, the value is withheld, and the telemetry half takes the row's table
instead. Logits are never kept for longer than a step: the allocator would have to find new pages for the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from corevital.engines.device_tables import DeviceTable, DeviceTables
from corevital.engines.host_tables import HostTable, HostTables
from corevital.engines.occupants import Occupants
from corevital.engines.steps import Numbers, Step
from corevital.kernels import by_address

_MOST_KEPT_BYTES: Final = 256 << 20
"""Logits kept at once: 440 rows of 151936. The engine's account of its memory does not know of them. Beyond this the
table of the 20 likeliest tokens has to do."""

Post = Callable[[Step], None]
"""What takes a step on, when it has been observed and again when it is settled:
:meth:`corevital.engines.courier.Courier.post`."""


@dataclass(slots=True, eq=False)
class Observed:
    """Rows whose sampled tokens are not known yet.

    Attributes:
        logits: ``[R, vocab]`` as returned to the engine, whose sampler works on it in place; None once let go of.
        at: ``[rows]`` int64, which of its rows; None for all of them.
        table: their statistics.
        step: what of them is on its way.
    """

    logits: torch.Tensor | None
    at: torch.Tensor | None
    table: HostTable | DeviceTable
    step: Step


class Emitter:
    """Turns what adapters observe into tables, and posts them.

    Args:
        post: takes a step on; returns at once.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._kept: deque[Observed] = deque()
        self._tables: HostTables | DeviceTables | None = None

    def observe(
        self, logits: torch.Tensor, at: torch.Tensor | None, slots: Numbers, positions: Numbers, occupants: Occupants
    ) -> Observed:
        """Emit the statistics of rows that tokens are about to be sampled from.

        Args:
            logits: as for :class:`Observed`, and so is ``at``.
            at: likewise.
            slots: the slot whose request a row belongs to; negative: nobody's.
            positions: where in its sequence a row stands; see :class:`Occupants`.
            occupants: who is in the slots.

        Returns:
            What :meth:`settle` will need.
        """
        if self._tables is None:
            kernel = by_address(logits.device)
            self._tables = DeviceTables() if kernel is None else HostTables(kernel)
        table = self._tables.observe(logits, at, slots, positions)
        step = Step(table.rows, table.where, occupants)
        self._post(step)
        observed = Observed(logits, at, table, step)
        self._kept.append(observed)
        while self._kept and (self._kept[0].logits is None or len(self._kept) * logits.nbytes > _MOST_KEPT_BYTES):
            self._kept.popleft().logits = None
        return observed

    def settle(self, observed: Observed, tokens: Numbers) -> None:
        """Emit the tokens that were sampled from observed rows.

        Args:
            observed: the rows.
            tokens: ``REJECTED`` where the row turned out not to count, ``UNKNOWN`` where its token will never be known.
        """
        try:
            observed.step.tokens = observed.table.tokens(observed.logits, observed.at, tokens)
        finally:
            observed.logits = None
        self._post(observed.step)
