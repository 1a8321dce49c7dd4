"""Tables of logits on the host, written by compiled code to addresses.

After a forward pass the caches hold weights and nothing else, and what is called then takes ten times as long as it
does alone, a call of torch some five microseconds. So memory is taken for many steps at a time, and
is used by address, without tensors.
"""

from __future__ import annotations

from math import nan
from typing import Final, NamedTuple

import numpy as np
import torch

from corevital.frames.layout import TOP_K
from corevital.kernels.api import ByAddress
from corevital.steps.device_tables import DeviceTable, DeviceTables
from corevital.steps.step import LIKELIEST, STATISTICS, WORDS, Array, Numbers, Stretch

_ROWS: Final = 256
"""Rows whose memory is taken at once: 58 KB, which the process may have already; more would be new pages."""

_TOKEN_WORDS: Final = 3


class _Memory(NamedTuple):
    """Memory of tables.

    Attributes:
        words: ``[rows, WORDS]`` int32, rows of steps.
        words_at: its address.
        tokens: ``[rows, 3]`` int32, what is known of their tokens.
        tokens_at: its address.
    """

    words: Array
    words_at: int
    tokens: Array
    tokens_at: int

    @classmethod
    def of(cls, rows: int) -> _Memory:
        words, tokens = np.empty((rows, WORDS), np.int32), np.empty((rows, _TOKEN_WORDS), np.int32)
        return cls(words, words.ctypes.data, tokens, tokens.ctypes.data)


class _Source(NamedTuple):
    """Where logits are; see :class:`ByAddress`."""

    vocab: int
    is_half: bool
    address: int
    pitch: int


class HostTable(NamedTuple):
    """The statistics of a step's rows, and room for their tokens.

    Attributes:
        rows: the table.
        where: slots and positions of its rows.
        memory: where it is.
        source: all of the logits.
        kernel: what wrote it.
    """

    rows: Stretch
    where: tuple[list[int], list[int]]
    memory: _Memory
    source: _Source
    kernel: ByAddress

    def tokens(self, logits: torch.Tensor | None, at: torch.Tensor | None, tokens: Numbers) -> Stretch:
        """The tokens of :class:`SampledStep`; see :class:`Observed` for the logits."""
        _, start, stop = self.rows
        known, ids = self.memory.tokens, as_list(tokens)
        if len(ids) != stop - start:
            raise ValueError(f"{len(ids)} tokens for {stop - start} rows")
        if logits is None or logits.data_ptr() != self.source.address:  # released, or given other memory
            known[start:stop, 0], known.view(np.float32)[start:stop, 1:] = ids, nan
        else:
            likeliest = self.memory.words_at + 4 * (start * WORDS + LIKELIEST)
            out = self.memory.tokens_at + 4 * start * _TOKEN_WORDS
            which = 0 if at is None else at.data_ptr()
            self.kernel.write_sampled(ids, *self.source, which, likeliest, WORDS, out)
        return Stretch(known, start, stop)


class HostTables:
    """Makes the tables of steps.

    Args:
        kernel: what writes them, :mod:`corevital.kernels.numba_cpu`.
    """

    def __init__(self, kernel: ByAddress) -> None:
        self._kernel = kernel
        self._others = DeviceTables()
        self._memory = _Memory.of(_ROWS)
        self._used = 0

    def measure(
        self, logits: torch.Tensor, at: torch.Tensor | None, slots: Numbers, positions: Numbers
    ) -> HostTable | DeviceTable:
        """The statistics of rows ``at`` of logits ``[R, vocab]``, by torch where those are not as an engine's own."""
        (rows, vocab), (pitch, step), dtype = logits.shape, logits.stride(), logits.dtype
        is_half = dtype is torch.bfloat16
        is_usual = rows > 0 and vocab > 0 and step == 1 and (is_half or dtype is torch.float32) and logits.is_cpu
        if not is_usual:
            return self._others.measure(logits, at, slots, positions)
        address = logits.data_ptr()
        source = _Source(vocab, is_half, address, pitch)
        if at is not None:
            logits = logits[at]
            rows, address, pitch = logits.shape[0], logits.data_ptr(), vocab
        start, stop = self._used, self._used + rows
        if stop > len(self._memory.words):
            start, stop = 0, rows
            self._memory = _Memory.of(max(_ROWS, rows))
        self._used, memory = stop, self._memory
        words = memory.words_at + 4 * (start * WORDS + STATISTICS)
        self._kernel.write_stats(rows, vocab, is_half, address, pitch, TOP_K, words, WORDS)
        where = as_list(slots), as_list(positions)
        return HostTable(Stretch(memory.words, start, stop), where, memory, source, self._kernel)


def as_list(numbers: Numbers) -> list[int]:
    """``[rows]``, on the host."""
    return numbers if isinstance(numbers, list) else numbers.tolist()
