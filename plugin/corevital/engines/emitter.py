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
from typing import Final

import torch

from corevital.engines.courier import Table
from corevital.engines.occupants import Occupants
from corevital.frames.record import ROW, TOP_K
from corevital.kernels import token_stats

_MOST_KEPT_BYTES: Final = 256 << 20
"""Logits kept from one step to the next: 440 rows of 151936. The engine's account of its memory does not know of them.
Beyond this the table of the 20 likeliest tokens has to do."""

_LOGSUMEXP, _MAX, _LIKELIEST = (
    ROW.fields[name][1] // 4  # type: ignore[index]
    for name in ("logsumexp", "max_logit", "topk_ids")
)

Post = Callable[[Table], None]
"""What takes a table on: :meth:`corevital.engines.courier.Courier.post`."""


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Rows whose sampled tokens are not known yet.

    Attributes:
        logits: ``[R, vocab]`` as returned to the engine, whose sampler works on it in place; None where keeping it
            would have cost too much memory.
        at: ``[rows]`` int64, which of its rows; None for all of them.
        table: ``[rows, words]`` int32, the words of a :data:`ROW`; see :meth:`Emitter.observe`.
        occupants: who was in the slots.
    """

    logits: torch.Tensor | None
    at: torch.Tensor | None
    table: torch.Tensor
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
        positions: torch.Tensor,
        occupants: Occupants,
    ) -> Observed:
        """Emit the statistics of rows that tokens are about to be sampled from.

        Args:
            logits: as for :class:`Observed`, and so are ``at`` and ``occupants``.
            at: likewise.
            slots: ``[rows]`` int32, the slot whose request a row belongs to; negative: nobody's.
            positions: ``[rows]`` int32, where in its sequence a row stands; see :class:`Occupants`.
            occupants: likewise.

        Returns:
            What :meth:`settle` will need. It holds on to ``logits``: let go of it as soon as it is settled.
        """
        stats = token_stats(logits if at is None else logits[at], top_k=TOP_K)
        # In the place of a row's key, two words, the slot stands as yet.
        table = torch.cat((slots[:, None], slots[:, None], positions[:, None], stats.words), dim=1)
        self._copy(table, occupants)
        affordable = self._kept_bytes + logits.nbytes <= _MOST_KEPT_BYTES
        self._kept_bytes += logits.nbytes if affordable else 0
        return Observed(logits if affordable else None, at, table, occupants)

    def settle(self, observed: Observed, tokens: torch.Tensor) -> None:
        """Emit the tokens that were sampled from observed rows.

        Args:
            observed: the rows.
            tokens: ``[rows]`` int32 on their device; ``REJECTED`` where the row turned out not to count,
                ``UNKNOWN`` where its token will never be known.
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


def _token_table(observed: Observed, tokens: torch.Tensor) -> torch.Tensor:
    """``[rows, 7]`` int32: slot, position, token, and the bits of four floats its log-probability follows from."""
    logits, at, table = observed.logits, observed.at, observed.table
    wanted = torch.stack((tokens, table[:, _LIKELIEST]), dim=1).clamp_min(0).long()  # [rows, 2]
    if logits is None:
        kept = torch.full(wanted.shape, torch.nan, dtype=torch.float32, device=tokens.device)
    else:
        kept = (logits.gather(1, wanted) if at is None else logits[at[:, None], wanted]).float()
    parts = (table[:, 1:3], tokens[:, None], kept.view(torch.int32), table[:, _LOGSUMEXP, None], table[:, _MAX, None])
    return torch.cat(parts, dim=1)
