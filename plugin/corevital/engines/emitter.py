"""From one step's logits to a table on its way to the host. What the adapters share.

An adapter calls :meth:`Emitter.observe` with the logits that tokens are about to be sampled from, and
:meth:`Emitter.settle` once those tokens are known, which is a step later. In between, the logits are kept: the sampler
scales them in place by the temperature and may mask them, never at the sampled token, so they give its exact
log-probability, ``temperature * kept[token] - logsumexp``. This is checked on each row against its own maximum, which
nothing masks: had another processor copied or changed the row, the value is withheld, and the telemetry half takes
the row's table instead.

Nothing here waits for the device. From a GPU the tables are copied to pinned memory on a stream of their own, behind
an event that :mod:`corevital.engines.courier` polls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from corevital.engines.courier import Table
from corevital.engines.occupants import Occupants
from corevital.frames.record import TOP_K
from corevital.kernels import token_stats

if TYPE_CHECKING:
    from corevital.kernels import TokenStats

_MOST_KEPT_BYTES: Final = 256 << 20
"""Logits kept from one step to the next: 440 rows of 151936. The engine's account of its memory does not know of them.
Beyond this the table of the 20 likeliest tokens has to do."""

Post = Callable[[Table], None]
"""What takes a table on: :meth:`corevital.engines.courier.Courier.post`."""


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Rows whose sampled tokens are not known yet.

    Attributes:
        logits: ``[R, vocab]`` as returned to the engine, whose sampler works on it in place; None where keeping it
            would have cost too much memory.
        at: ``[rows]`` int64, which of its rows; None for all of them.
        slots: ``[rows]`` int32, the slot whose request a row belongs to.
        indices: ``[rows]`` int32, output index of the token sampled from a row; negative: it is thrown away.
        stats: their statistics.
        occupants: who was in the slots.
    """

    logits: torch.Tensor | None
    at: torch.Tensor | None
    slots: torch.Tensor
    indices: torch.Tensor
    stats: TokenStats
    occupants: Occupants


class Emitter:
    """Turns what adapters observe into tables, and posts them.

    Args:
        post: takes a table on; returns at once.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._stream: torch.cuda.Stream | None = None
        self._kept_bytes = 0

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
        affordable = self._kept_bytes + logits.nbytes <= _MOST_KEPT_BYTES
        self._kept_bytes += logits.nbytes if affordable else 0
        return Observed(logits if affordable else None, at, slots, indices, stats, occupants)

    def settle(self, observed: Observed, tokens: torch.Tensor) -> None:
        """Emit the tokens that were sampled from observed rows.

        Args:
            observed: the rows.
            tokens: ``[rows]`` on their device; ``REJECTED`` where the row turned out not to count, ``UNKNOWN`` where
                its token will never be known.
        """
        if observed.logits is not None:
            self._kept_bytes -= observed.logits.nbytes
        self._copy(_token_table(observed, tokens), observed.occupants)

    def _copy(self, table: torch.Tensor, occupants: Occupants) -> None:
        done = None
        if table.is_cuda:
            if self._stream is None:
                self._stream = torch.cuda.Stream(table.device)  # type: ignore[no-untyped-call]
            # PyTorch keeps pinned blocks and hands one out again when its copy is done: no allocation a step
            host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
            self._stream.wait_stream(torch.cuda.current_stream(table.device))
            with torch.cuda.stream(self._stream):
                host.copy_(table, non_blocking=True)
                done = self._stream.record_event()
            table.record_stream(self._stream)
            table = host
        self._post(Table(table, occupants, done))


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
    logits, at = observed.logits, observed.at
    wanted = torch.stack((tokens, stats.topk_ids[:, 0]), dim=1).clamp_min(0).long()  # [rows, 2]
    if logits is None:
        kept = torch.full(wanted.shape, torch.nan, device=tokens.device)
    else:
        kept = logits.gather(1, wanted) if at is None else logits[at[:, None], wanted]
    floats = torch.cat((kept.float(), stats.logsumexp[:, None], stats.max_logit[:, None]), dim=1)
    integers = torch.stack((observed.slots, observed.indices, tokens.to(torch.int32)), dim=1)
    return torch.cat((integers, floats.view(torch.int32)), dim=1)
