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

import numpy as np
import torch

from corevital.engines.courier import Step, Table
from corevital.engines.occupants import Occupants
from corevital.frames.record import ROW, TOP_K
from corevital.kernels import token_stats

_MOST_KEPT_BYTES: Final = 256 << 20
"""Logits kept from one step to the next: 440 rows of 151936. The engine's account of its memory does not know of them.
Beyond this the table of the 20 likeliest tokens has to do."""

_STATISTICS: Final = ROW.fields["nan_count"][1] // 4  # type: ignore[index]
_LIKELIEST: Final = ROW.fields["topk_ids"][1] // 4  # type: ignore[index]

Post = Callable[[Step], None]
"""What takes a step on, when it has been observed and again when it is settled:
:meth:`corevital.engines.courier.Courier.post`."""


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Rows whose sampled tokens are not known yet.

    Attributes:
        logits: ``[R, vocab]`` as returned to the engine, whose sampler works on it in place; None where keeping it
            would have cost too much memory.
        at: ``[rows]`` int64, which of its rows; None for all of them.
        table: ``[rows, words]`` int32, the words of a :data:`ROW`, on the logits' device; in the place of a row's key,
            two words, the second is its slot, and in that of its index stands its position.
        step: what of them is on its way to the host.
    """

    logits: torch.Tensor | None
    at: torch.Tensor | None
    table: torch.Tensor
    step: Step


class Emitter:
    """Turns what adapters observe into tables, and posts them.

    Args:
        post: takes a step on; returns at once.
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
            logits: as for :class:`Observed`, and so is ``at``.
            at: likewise.
            slots: ``[rows]`` int, the slot whose request a row belongs to; negative: nobody's.
            positions: ``[rows]`` int, where in its sequence a row stands; see :class:`Occupants`.
            occupants: who is in the slots.

        Returns:
            What :meth:`settle` will need. It holds on to ``logits``: let go of it as soon as it is settled.
        """
        table = torch.empty((len(slots), ROW.itemsize // 4), dtype=torch.int32, device=logits.device)
        table[:, 1], table[:, 2] = slots, positions
        token_stats(logits if at is None else logits[at], top_k=TOP_K, out=table[:, _STATISTICS:])
        step = Step(self._to_host(table), occupants)
        self._post(step)
        affordable = self._kept_bytes + logits.nbytes <= _MOST_KEPT_BYTES
        self._kept_bytes += logits.nbytes if affordable else 0
        return Observed(logits if affordable else None, at, table, step)

    def settle(self, observed: Observed, tokens: torch.Tensor) -> None:
        """Emit the tokens that were sampled from observed rows.

        Args:
            observed: the rows.
            tokens: ``[rows]`` int32 on their device; ``REJECTED`` where the row turned out not to count,
                ``UNKNOWN`` where its token will never be known.
        """
        if observed.logits is not None:
            self._kept_bytes -= observed.logits.nbytes
        observed.step.tokens = self._to_host(_token_table(observed, tokens))
        self._post(observed.step)

    def _to_host(self, table: torch.Tensor) -> Table:
        if not table.is_cuda:
            return Table(table)
        if self._stream is None:
            self._stream = torch.cuda.Stream(table.device)  # type: ignore[no-untyped-call]
        # PyTorch keeps pinned blocks and hands one out again when its copy is done: no allocation a step
        host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(table.device))
        with torch.cuda.stream(self._stream):
            host.copy_(table, non_blocking=True)
            done = self._stream.record_event()
        table.record_stream(self._stream)
        return Table(host, done)


def _token_table(observed: Observed, tokens: torch.Tensor) -> torch.Tensor:
    """``[rows, 3]`` int32: the tokens and, as the bits of float32, the kept logits of each and of the likeliest."""
    logits, at, likeliest = observed.logits, observed.at, observed.table[:, _LIKELIEST]
    if tokens.device.type == "cpu" and logits is not None and logits.dtype == torch.float32:
        return _token_table_on_cpu(logits, at, likeliest, tokens)
    if logits is None:
        kept = torch.full((len(tokens), 2), torch.nan, dtype=torch.float32, device=tokens.device)
    else:
        wanted = torch.stack((tokens, likeliest), dim=1).clamp_min(0).long()  # [rows, 2]
        kept = (logits.gather(1, wanted) if at is None else logits[at[:, None], wanted]).float()
    return torch.cat((tokens[:, None], kept.view(torch.int32)), dim=1)


def _token_table_on_cpu(
    logits: torch.Tensor, at: torch.Tensor | None, likeliest: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """The same in NumPy, in a fraction of the time: after a forward pass nothing of torch is in the caches."""
    words = np.empty((len(tokens), 3), np.int32)
    ids, values, floats = tokens.numpy(), logits.numpy(), words.view(np.float32)
    rows = np.arange(len(ids)) if at is None else at.numpy()
    words[:, 0] = ids
    # negative ones, which stand for no token, read the row's end: what is read for them is not used
    floats[:, 1] = values[rows, ids]
    floats[:, 2] = values[rows, likeliest.numpy()]
    return torch.from_numpy(words)
