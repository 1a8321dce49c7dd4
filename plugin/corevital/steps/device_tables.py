"""Tables made by torch, where the logits are. Nothing here waits for the device.

From a GPU they are copied to pinned memory on a separate stream, behind an event that
:mod:`corevital.steps.frame_thread` polls.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from corevital.frames.layout import TOP_K
from corevital.kernels.api import token_stats_unchecked
from corevital.steps.step import LIKELIEST, POSITION, SLOT, STATISTICS, WORDS, Numbers, Table


class DeviceTable(NamedTuple):
    """The statistics of a step's rows.

    Attributes:
        rows: them on their way to the host.
        where: slots and positions of its rows, if they were known on the host.
        table: ``[rows, words]`` int32 on the device.
        tables: what made it.
    """

    rows: Table
    where: tuple[list[int], list[int]] | None
    table: torch.Tensor
    tables: DeviceTables

    def tokens(self, logits: torch.Tensor | None, at: torch.Tensor | None, tokens: Numbers) -> Table:
        """The tokens of :class:`SampledStep`; see :class:`Observed` for the logits.

        A row of a prompt has a prompt's token, which may lie beyond the logits where a model has more embeddings than
        outputs; nobody will ask for its value.
        """
        ids = _on(tokens, self.table)
        if logits is None:
            values = torch.full((len(ids), 2), torch.nan, dtype=torch.float32, device=ids.device)
        else:
            wanted = torch.stack((ids, self.table[:, LIKELIEST]), dim=1).clamp(0, logits.shape[1] - 1).long()
            values = logits.gather(1, wanted) if at is None else logits[at[:, None], wanted]
        return self.tables.to_host(torch.cat((ids[:, None], values.float().view(torch.int32)), dim=1))


class DeviceTables:
    """Makes the tables of steps."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def measure(self, logits: torch.Tensor, at: torch.Tensor | None, slots: Numbers, positions: Numbers) -> DeviceTable:
        """The statistics of rows ``at`` of logits ``[R, vocab]``."""
        read = logits if at is None else logits[at]
        table = torch.empty((read.shape[0], WORDS), dtype=torch.int32, device=read.device)
        token_stats_unchecked(read, TOP_K, table[:, STATISTICS:])
        where = None
        if isinstance(slots, list) and isinstance(positions, list):
            where = slots, positions
        else:
            table[:, SLOT], table[:, POSITION] = _on(slots, table), _on(positions, table)
        return DeviceTable(self.to_host(table), where, table, self)

    def to_host(self, table: torch.Tensor) -> Table:
        """A table of the device on its way."""
        if not table.is_cuda:
            return Table(table.cpu())
        if self._stream is None:
            self._stream = torch.cuda.Stream(table.device)
        # PyTorch keeps pinned blocks and hands one out again when its copy is done: no allocation a step
        host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(table.device))
        with torch.cuda.stream(self._stream):
            host.copy_(table, non_blocking=True)
            done = self._stream.record_event()
        table.record_stream(self._stream)
        return Table(host, done)


def to_device(values: list[int], device: torch.device) -> torch.Tensor:
    """``[values]`` int32, without waiting for the device."""
    return torch.tensor(values, dtype=torch.int32, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _on(numbers: Numbers, table: torch.Tensor) -> torch.Tensor:
    return to_device(numbers, table.device) if isinstance(numbers, list) else numbers
