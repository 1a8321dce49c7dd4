"""From one step's logits to tables on their way to the host. What the adapters share.

An adapter calls :meth:`Emitter.observe` with the logits that tokens are about to be sampled from, and
:meth:`Emitter.settle` once those tokens are known, which is a step later. The logits are kept: the sampler scales them
in place by the temperature and may mask them, never at the sampled token, so they give its exact log-probability,
``temperature * kept[token] - logsumexp``. This is checked on each row against its own maximum, which nothing masks:
had another processor copied or changed the row, the value is withheld, and the telemetry half takes the row's table
instead. Logits are never kept for longer than a step: the allocator would have to find new pages for the next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from corevital.engines.device_tables import DeviceTable, DeviceTables
from corevital.engines.host_tables import HostTable, HostTables
from corevital.engines.occupants import Occupants
from corevital.engines.steps import Kept, Numbers, Step
from corevital.kernels import by_address, is_compiled
from corevital.log import warn_once

if TYPE_CHECKING:
    from corevital.engines.gpu_tables import GpuTable, GpuTables

MOST_KEPT_BYTES: Final = 256 << 20
"""Logits kept at once: 440 rows of 151936. The engine's account of its memory does not know of them. Beyond this the
table of the 20 likeliest tokens has to do."""

_REST_S: Final = 30.0
"""Pause after the device ran out of memory."""

Post = Callable[[Step], None]
"""What takes a step on, when it has been observed and again when it is settled:
:meth:`corevital.engines.courier.Courier.post`."""


def tables_for(device: torch.device, rows: int) -> HostTables | DeviceTables | GpuTables:
    """What makes the tables of logits on this device."""
    kernel = by_address(device)
    if kernel is not None:
        return HostTables(kernel)
    if is_compiled(device):
        from corevital.engines.gpu_tables import GpuTables

        return GpuTables(device, rows)
    return DeviceTables()


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
    table: HostTable | DeviceTable | GpuTable
    step: Step


class Emitter:
    """Turns what adapters observe into tables, and posts them.

    Args:
        post: takes a step on; returns at once.
        rows: of a step at most, as far as that is known.
        most_kept: bytes of logits that are kept at once at most; 0: 256 MiB.
    """

    def __init__(self, post: Post, rows: int = 1024, most_kept: int = 0) -> None:
        self._post = post
        self._rows = rows
        self._most_kept = most_kept or MOST_KEPT_BYTES
        self._kept: deque[Observed] = deque()
        self._rests_until = 0.0
        self._tables: HostTables | DeviceTables | GpuTables | None = None

    def warm_up(self, vocab: int, device: torch.device) -> int:
        """Take now what steps of such logits will need. Returns its bytes on a GPU, and as many pinned ones."""
        self._tables = tables_for(device, self._rows)
        if isinstance(self._tables, HostTables | DeviceTables):
            return 0
        self._tables.warm_up(vocab)
        return self._tables.nbytes

    def observe(
        self, logits: torch.Tensor, at: torch.Tensor | None, slots: Numbers, positions: Numbers, occupants: Occupants
    ) -> Observed | None:
        """Emit the statistics of rows that tokens are about to be sampled from.

        Args:
            logits: as for :class:`Observed`, and so is ``at``.
            at: likewise.
            slots: the slot whose request a row belongs to; negative: nobody's.
            positions: where in its sequence a row stands; see :class:`Occupants`.
            occupants: who is in the slots.

        Returns:
            What :meth:`settle` will need; None where the device is out of memory, or was a moment ago.
        """
        if self._rests_until and time.monotonic() < self._rests_until:
            return None
        try:
            if self._tables is None:
                self._tables = tables_for(logits.device, self._rows)
            table = self._tables.observe(logits, at, slots, positions)
        except RuntimeError as error:
            self._rest(error)
            return None
        if table is None:
            return None
        step = Step(table.rows, table.where, occupants)
        self._post(step)
        observed = Observed(logits, at, table, step)
        self._kept.append(observed)
        self._let_go()
        return observed

    def settle(self, observed: Observed, tokens: Numbers | Kept) -> None:
        """Emit the tokens that were sampled from observed rows.

        Args:
            observed: the rows.
            tokens: ``REJECTED`` where the row turned out not to count, ``UNKNOWN`` where its token will never be known;
                or where the engine keeps them, for a :class:`GpuTable` that has slots and positions from the device.
        """
        try:
            observed.step.tokens = observed.table.tokens(observed.logits, observed.at, tokens)  # type: ignore[arg-type]
        except RuntimeError as error:
            self._rest(error)
            return
        finally:
            observed.logits = None
        self._post(observed.step)

    def _let_go(self) -> None:
        """Let go of the oldest logits beyond the bound, and of what settled steps have left."""
        kept, left = self._kept, self._most_kept
        for observed in reversed(kept):
            left -= 0 if observed.logits is None else observed.logits.nbytes
            if left < 0:
                observed.logits = None
        while kept and kept[0].logits is None:
            kept.popleft()

    def _rest(self, error: RuntimeError) -> None:
        """Measure nothing for a while where memory ran out: to try again at each step would cost every request."""
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise error
        while self._kept:
            self._kept.popleft().logits = None
        self._rests_until = time.monotonic() + _REST_S
        warn_once(
            "memory",
            "the device is out of memory: nothing is measured for %.0f s, and again whenever that happens; "
            "lower --gpu-memory-utilization",
            _REST_S,
        )
