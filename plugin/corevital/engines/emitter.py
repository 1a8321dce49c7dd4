"""From one step's logits to frames on their way. What the adapters share.

An adapter calls :meth:`Emitter.observe` with the logits that tokens are about to be sampled from, and
:meth:`Emitter.settle` once those tokens are known, which is a step later. In between, the logits are kept: the sampler
scales them in place by the temperature and may mask them, never at the sampled token, so they give its exact
log-probability, ``temperature * kept[token] - logsumexp``. This is checked on each row against its own maximum, which
nothing masks: had another processor copied or changed the row, the value is withheld, and the telemetry half takes
the row's table instead.

Nothing here waits for the device. On a CPU the numbers are there at once. On a GPU they are copied to pinned memory
behind an event, which is polled at the next step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from corevital.engines.occupants import Occupants
from corevital.frames.record import REJECTED, ROW, SAMPLED, TOP_K
from corevital.kernels import token_stats

if TYPE_CHECKING:
    from corevital.kernels import TokenStats

UNKNOWN: Final = -2
"""Stands for a token that nothing will ever be known of: no record is sent for it."""

_TOLERANCE: Final = 1e-4
"""Relative difference between a kept maximum and the one we saw, from which on the kept row is not trusted."""

_MAX_IN_FLIGHT: Final = 64
"""Copies that may be under way at once; past that the oldest is dropped and counted."""

Array = npt.NDArray[Any]


class Sender(Protocol):
    """What an emitter needs of :class:`corevital.frames.transport.FrameSender`."""

    dropped: int

    def send(self, server: str, rows: Array = ..., sampled: Array = ...) -> None:
        """Send or drop one frame, never block."""


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Rows whose sampled tokens are not known yet.

    Attributes:
        logits: ``[R, vocab]`` as returned to the engine, whose sampler works on it in place.
        at: ``[rows]`` int64, which of its rows; None for all of them.
        slots: ``[rows]`` int32, the slot whose request a row belongs to.
        indices: ``[rows]`` int32, output index of the token sampled from a row; negative: it is thrown away.
        stats: their statistics.
        occupants: who was in the slots.
    """

    logits: torch.Tensor
    at: torch.Tensor | None
    slots: torch.Tensor
    indices: torch.Tensor
    stats: TokenStats
    occupants: Occupants


@dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    """A table on its way from the device: rows of statistics, or of sampled tokens."""

    table: torch.Tensor  # [rows, words] int32
    occupants: Occupants
    done: torch.cuda.Event | None

    @property
    def arrived(self) -> bool:
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]


class Emitter:
    """Packs what adapters observe into frames, one for each API server that wants them.

    Args:
        sender: where they leave.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._in_flight: deque[_Copy] = deque()

    def observe(
        self,
        logits: torch.Tensor,
        at: torch.Tensor | None,
        slots: torch.Tensor,
        indices: torch.Tensor,
        occupants: Occupants,
    ) -> Observed:
        """Emit the statistics of rows that tokens are about to be sampled from. The arguments are :class:`Observed`'s.

        Returns:
            What :meth:`settle` will need. It holds on to ``logits``: let go of it as soon as it is settled.
        """
        stats = token_stats(logits if at is None else logits[at], top_k=TOP_K)
        self._copy(_row_table(slots, indices, stats, logits.shape[1]), occupants)
        return Observed(logits, at, slots, indices, stats, occupants)

    def settle(self, observed: Observed, tokens: torch.Tensor) -> None:
        """Emit the tokens that were sampled from observed rows.

        Args:
            observed: the rows.
            tokens: ``[rows]`` on their device; ``REJECTED`` where the row turned out not to count, :data:`UNKNOWN`
                where its token will never be known.
        """
        self._copy(_token_table(observed, tokens), observed.occupants)

    def flush(self) -> None:
        """Send what has arrived from the device; leave the rest for the next call."""
        while self._in_flight and self._in_flight[0].arrived:
            copy = self._in_flight.popleft()
            words = copy.table.numpy()
            if words.shape[1] == ROW.itemsize // 4:
                for server, rows in _by_server(words, words[:, 2], copy.occupants):
                    self._sender.send(server, rows=_rows(rows, copy.occupants))
            else:
                sent = words[:, 2] != UNKNOWN
                for server, rows in _by_server(words[sent], words[sent, 1], copy.occupants):
                    self._sender.send(server, sampled=_sampled(rows, copy.occupants))

    def _copy(self, table: torch.Tensor, occupants: Occupants) -> None:
        done = None
        if table.is_cuda:
            host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
            table = host.copy_(table, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._in_flight.append(_Copy(table, occupants, done))
        if len(self._in_flight) > _MAX_IN_FLIGHT:
            self._sender.dropped += len(self._in_flight.popleft().table)
        self.flush()


def _row_table(slots: torch.Tensor, indices: torch.Tensor, stats: TokenStats, vocab: int) -> torch.Tensor:
    """The words of a :data:`ROW` for each row, in whose key the slot stands as yet: one copy takes them all."""
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
    columns = (slots, slots, indices, *counts, *(scalar.view(torch.int32) for scalar in scalars))
    head = torch.stack([*columns, torch.full_like(slots, vocab)], dim=1)
    return torch.cat((head, stats.topk_ids, stats.topk_logprobs.view(torch.int32)), dim=1)


def _token_table(observed: Observed, tokens: torch.Tensor) -> torch.Tensor:
    """``[rows, 7]`` int32: slot, index, token, and four floats that its log-probability follows from."""
    stats = observed.stats
    wanted = torch.stack((tokens, stats.topk_ids[:, 0]), dim=1).clamp_min(0).long()  # [rows, 2]
    logits, at = observed.logits, observed.at
    kept = logits.gather(1, wanted) if at is None else logits[at[:, None], wanted]
    floats = torch.cat((kept.float(), stats.logsumexp[:, None], stats.max_logit[:, None]), dim=1)
    integers = torch.stack((observed.slots, observed.indices, tokens.to(torch.int32)), dim=1)
    return torch.cat((integers, floats.view(torch.int32)), dim=1)


def _by_server(words: Array, indices: Array, occupants: Occupants) -> Iterator[tuple[str, Array]]:
    """Rows that count, by the server that wants them. Nearly always there is one server."""
    servers = occupants.servers[words[:, 0]]
    servers[indices < 0] = None
    for server in set(servers.tolist()) - {None}:
        yield server, words[servers == server]


def _rows(words: Array, occupants: Occupants) -> Array:
    slots = words[:, 0].copy()  # the keys are about to be written over them
    table = np.ascontiguousarray(words).view(ROW)[:, 0]
    table["key"] = occupants.keys[slots]
    table["index"] += occupants.bases[slots].astype(np.uint32)
    return table


def _sampled(words: Array, occupants: Occupants) -> Array:
    slots = words[:, 0]
    kept, kept_max, logsumexp, seen_max = np.ascontiguousarray(words[:, 3:]).view(np.float32).T
    table = np.zeros(len(words), SAMPLED)
    table["key"] = occupants.keys[slots]
    table["index"] = words[:, 1] + occupants.bases[slots]
    table["token"] = words[:, 2]
    with np.errstate(invalid="ignore", over="ignore"):
        scale = occupants.scales[slots]
        untouched = np.abs(kept_max * scale - seen_max) <= _TOLERANCE * (1 + np.abs(seen_max))
        table["logprob"] = np.where(untouched & (table["token"] != REJECTED), kept * scale - logsumexp, np.nan)
    return table
