"""From token statistics on the serving device to frames on their way. Shared by all adapters.

On a CPU the numbers are there at once. On a GPU they are copied to pinned memory behind an event, which is polled at
the next step and never waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from corevital.frames.record import ROW, SAMPLED
from corevital.frames.stamp import Stamp

if TYPE_CHECKING:
    from corevital.kernels import TokenStats

_KEY_WORDS: Final = 3
"""32-bit words of a ROW before the statistics: the key's two and the index."""

_MAX_IN_FLIGHT: Final = 64
"""Copies that may be under way at once; past that the oldest is dropped and counted."""

Ints = npt.NDArray[Any]


class Sender(Protocol):
    """What an emitter needs of :class:`corevital.frames.transport.FrameSender`."""

    dropped: int

    def send(self, server: str, rows: Ints = ..., sampled: Ints = ...) -> None:
        """Send or drop one frame, never block."""


@dataclass(slots=True)
class _Copy:
    """Tables on their way from the device, with what the host knew of them already."""

    stamps: Sequence[Stamp]
    indices: Sequence[int]
    tokens: Sequence[int] | None  # None: rows of statistics; else: log-probabilities of these tokens
    values: torch.Tensor
    done: torch.cuda.Event | None


class Emitter:
    """Packs statistics into frames, one for each API server that wants them.

    Args:
        sender: where they leave.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._in_flight: deque[_Copy] = deque()

    def rows(self, stamps: Sequence[Stamp], indices: Sequence[int], stats: TokenStats, vocab: int) -> None:
        """Statistics of the rows that the next tokens are about to be sampled from.

        Args:
            stamps: one a row.
            indices: output index of the token to come, one a row.
            stats: fields ``[rows]`` and ``[rows, 20]``, on the serving device.
            vocab: entries in a row of logits.
        """
        self._copy(_Copy(stamps, indices, None, _pack(stats, vocab), None))

    def sampled(
        self, stamps: Sequence[Stamp], indices: Sequence[int], tokens: Sequence[int], logprobs: torch.Tensor
    ) -> None:
        """The tokens that were sampled from earlier rows.

        Args:
            stamps, indices, tokens: one a token.
            logprobs: ``[tokens]`` float32, nats; NaN where they are not known.
        """
        self._copy(_Copy(stamps, indices, tokens, logprobs, None))

    def _copy(self, copy: _Copy) -> None:
        if copy.values.is_cuda:
            host = torch.empty(copy.values.shape, dtype=copy.values.dtype, pin_memory=True)
            host.copy_(copy.values, non_blocking=True)
            copy.values = host
            copy.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copy.done.record()
        self._in_flight.append(copy)
        if len(self._in_flight) > _MAX_IN_FLIGHT:
            self._sender.dropped += len(self._in_flight.popleft().stamps)
        self.flush()

    def flush(self) -> None:
        """Send what has arrived from the device; leave the rest for the next call."""
        while self._in_flight and _has_arrived(self._in_flight[0]):
            copy = self._in_flight.popleft()
            for server, at in _by_server(copy.stamps):
                keys = [copy.stamps[i].key for i in at]
                indices = [copy.indices[i] for i in at]
                values = copy.values.numpy()[at]
                if copy.tokens is None:
                    self._sender.send(server, rows=_row_table(keys, indices, values))
                else:
                    tokens = [copy.tokens[i] for i in at]
                    self._sender.send(server, sampled=_sampled_table(keys, indices, tokens, values))


def _has_arrived(copy: _Copy) -> bool:
    return copy.done is None or bool(copy.done.query())  # type: ignore[no-untyped-call]


def _pack(stats: TokenStats, vocab: int) -> torch.Tensor:
    """All fields as the 32-bit words of a ROW from ``nan_count`` on, ``[rows, 51]`` int32: one copy takes them all."""
    counts = (stats.nan_count, stats.posinf_count, stats.neginf_count)
    scalars = (
        stats.logsumexp,
        stats.entropy,
        stats.varentropy,
        stats.max_logit,
        stats.top1_prob,
        stats.margin,
        stats.topk_mass,
    )
    columns = [count.to(torch.int32).unsqueeze(1) for count in counts]
    columns += [scalar.view(torch.int32).unsqueeze(1) for scalar in scalars]
    columns.append(torch.full_like(columns[0], vocab))
    return torch.cat((*columns, stats.topk_ids.to(torch.int32), stats.topk_logprobs.view(torch.int32)), dim=1)


def _by_server(stamps: Sequence[Stamp]) -> list[tuple[str, Any]]:
    """Positions of each API server's stamps. Nearly always there is one server."""
    if all(stamp.server == stamps[0].server for stamp in stamps):
        return [(stamps[0].server, range(len(stamps)))] if stamps else []
    servers: dict[str, list[int]] = {}
    for i, stamp in enumerate(stamps):
        servers.setdefault(stamp.server, []).append(i)
    return list(servers.items())


def _row_table(keys: list[int], indices: list[int], words: Ints) -> Ints:
    table = np.empty(len(keys), ROW)
    table.view("<i4").reshape(len(keys), -1)[:, _KEY_WORDS:] = words
    table["key"] = keys
    table["index"] = indices
    return table


def _sampled_table(keys: list[int], indices: list[int], tokens: list[int], logprobs: Ints) -> Ints:
    table = np.zeros(len(keys), SAMPLED)
    table["key"] = keys
    table["index"] = indices
    table["token"] = tokens
    table["logprob"] = logprobs
    return table
