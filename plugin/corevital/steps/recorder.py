"""From one step's logits to tables on their way to the host. All adapters use it.

An adapter calls :meth:`Recorder.record_logits` with the logits that tokens are about to be sampled from, and
:meth:`Recorder.record_tokens` once those tokens are known: later in the same step, or in the next one. Meanwhile the
logits are kept: the sampler scales them in place by the temperature and may mask them, never at the sampled token, so
they give its exact log-probability, ``temperature * kept[token] - logsumexp``. This is checked on each row against its
own maximum, which nothing masks: if another processor has copied or changed the row, the value is withheld, and the
telemetry half takes the row's table instead. Logits are never kept for longer than a step: the allocator would have to
find new pages for the next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from corevital.kernels.api import by_address, is_compiled
from corevital.log import warn_once
from corevital.steps.device_tables import DeviceTable, DeviceTables, to_device
from corevital.steps.host_tables import HostTable, HostTables
from corevital.steps.slots import Owners
from corevital.steps.step import Kept, Numbers, SampledStep, Step

if TYPE_CHECKING:
    from corevital.steps.gpu_tables import GpuTable, GpuTables

MOST_KEPT_BYTES: Final = 256 << 20
"""Logits kept at once: 440 rows of 151936. The engine does not count them in its memory. Beyond this the table of the
20 likeliest tokens is used instead."""

_REST_S: Final = 30.0
"""Pause after the device ran out of memory."""

Lose = Callable[[Owners, int], None]
"""What counts rows that were not measured: :meth:`corevital.steps.frame_thread.FrameThread.lose`."""

Post = Callable[[Step | SampledStep], None]
"""What takes on both phases of a step: :meth:`corevital.steps.frame_thread.FrameThread.post`."""


def tables_for(device: torch.device, rows: int) -> HostTables | DeviceTables | GpuTables:
    """What makes the tables of logits on this device."""
    kernel = by_address(device)
    if kernel is not None:
        return HostTables(kernel)
    if is_compiled(device):
        from corevital.steps.gpu_tables import GpuTables

        return GpuTables(device, rows)
    return DeviceTables()


@dataclass(slots=True, eq=False)
class Observed:
    """Rows whose sampled tokens are not known yet.

    Attributes:
        logits: ``[R, vocab]`` as returned to the engine, whose sampler works on it in place; None once released.
        at: ``[rows]`` int64, which of its rows; None for all of them.
        table: their statistics.
        step: what of them is on its way.
    """

    logits: torch.Tensor | None
    at: torch.Tensor | None
    table: HostTable | DeviceTable | GpuTable
    step: Step


class Recorder:
    """Turns logits and tokens into tables, and posts them.

    Args:
        post: takes a step on; returns at once.
        rows: of a step at most, as far as that is known.
        most_kept: bytes of logits that are kept at once at most; 0: 256 MiB.
        lose: counts rows that are not measured for lack of room or memory.
        hurry: has what was posted sent at once.
    """

    def __init__(
        self,
        post: Post,
        rows: int = 1024,
        most_kept: int = 0,
        lose: Lose = lambda owners, rows: None,
        hurry: Callable[[], None] = lambda: None,
    ) -> None:
        self._post = post
        self._lose = lose
        self.hurry = hurry
        """Called when a sequence whose statistics somebody waits for has ended."""
        self._rows = rows
        self._most_kept = most_kept or MOST_KEPT_BYTES
        self._kept: deque[Observed] = deque()
        self._rests_until = 0.0
        self._tables: HostTables | DeviceTables | GpuTables | None = None

    def warm_up(self, vocab: int, device: torch.device) -> tuple[int, int]:
        """Take now what steps of such logits will need. Returns its bytes on a GPU, and in the host's pinned memory.

        Raises:
            Exception: of a compiler or a driver, each with its own types; or memory has run out.
        """
        self._tables = tables_for(device, self._rows)
        if isinstance(self._tables, HostTables | DeviceTables):
            return 0, 0
        self._tables.warm_up(vocab)
        for power in range(self._rows.bit_length() + 1):  # PyTorch keeps pinned blocks, each for its power of two
            to_device([0] * (1 << power), device)
        return self._tables.nbytes, self._tables.pinned_nbytes

    def copy(self, logits: torch.Tensor) -> torch.Tensor | None:
        """A copy of logits that the engine is about to change, in float32 where they are float16.

        Returns:
            None where it would be too large, or the device is or was just now out of memory.
        """
        if logits.nbytes > self._most_kept or self._is_resting():
            return None
        try:
            return logits.to(torch.float32 if logits.dtype is torch.float16 else logits.dtype, copy=True)
        except RuntimeError as error:
            self._rest(error)
            return None

    def record_logits(
        self, logits: torch.Tensor, at: torch.Tensor | None, slots: Numbers, positions: Numbers, owners: Owners
    ) -> Observed | None:
        """Post the statistics of rows that tokens are about to be sampled from.

        Args:
            logits: ``[R, vocab]`` float32 or bfloat16, as the engine's sampler will work on it.
            at: ``[rows]`` int, which of its rows; None for all of them.
            slots: ``[rows]``, the slot whose request a row belongs to; negative: not measured.
            positions: ``[rows]``, where in its sequence a row stands; see :class:`Owners`.
            owners: whose the slots are.

        Returns:
            What :meth:`record_tokens` needs; None where there is no room for the rows, or the device is or was just now
            out of memory: they are counted as lost.
        """
        table = self._table(logits, at, slots, positions)
        if table is None:
            self._lose(owners, len(logits) if at is None else len(at))
            return None
        step = Step(table.rows, table.where, owners)
        self._post(step)
        observed = Observed(logits, at, table, step)
        self._kept.append(observed)
        self._release()
        return observed

    def _table(
        self, logits: torch.Tensor, at: torch.Tensor | None, slots: Numbers, positions: Numbers
    ) -> HostTable | DeviceTable | GpuTable | None:
        if self._is_resting():
            return None
        try:
            if self._tables is None:
                self._tables = tables_for(logits.device, self._rows)
            return self._tables.measure(logits, at, slots, positions)
        except RuntimeError as error:
            self._rest(error)
            return None

    def lose(self, owners: Owners, rows: int) -> None:
        """Count rows that could not be shown."""
        self._lose(owners, rows)

    def record_tokens(self, observed: Observed, tokens: Numbers | Kept) -> None:
        """Post the tokens that were sampled from observed rows. At most once for each.

        Args:
            observed: the rows.
            tokens: ``[rows]``; ``REJECTED`` where the row turned out not to count, ``UNKNOWN`` where its token will
                never be known. Or where the engine keeps them, for a :class:`GpuTable` with slots and positions from
                the device.
        """
        try:
            table = observed.table.tokens(observed.logits, observed.at, tokens)
        except RuntimeError as error:
            self._rest(error)
            self._lose(observed.step.owners, observed.step.size)
            return
        finally:
            observed.logits = None
        self._post(SampledStep(observed.step, table))

    def _release(self) -> None:
        """Release the oldest logits beyond the bound, and forget steps whose tokens are known."""
        kept, left = self._kept, self._most_kept
        for observed in reversed(kept):
            left -= 0 if observed.logits is None else observed.logits.nbytes
            if left < 0:
                observed.logits = None
        while kept and kept[0].logits is None:
            kept.popleft()

    def _is_resting(self) -> bool:
        return bool(self._rests_until) and time.monotonic() < self._rests_until

    def _rest(self, error: RuntimeError) -> None:
        """Measure nothing for a while after memory ran out: trying again at each step would slow every request."""
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
