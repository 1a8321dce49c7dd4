"""From one step's logits to tables on their way to the host. What the adapters share.

An adapter calls :meth:`Emitter.observe` with the logits that tokens are about to be sampled from, and
:meth:`Emitter.settle` once those tokens are known, which is a step later. The logits are kept: the sampler scales them
in place by the temperature and may mask them, never at the sampled token, so they give its exact log-probability,
``temperature * kept[token] - logsumexp``. This is checked on each row against its own maximum, which nothing masks:
had another processor copied or changed the row, the value is withheld, and the telemetry half takes the row's table
instead.

Nothing here waits for the device. From a GPU the tables are copied to pinned memory on a stream of their own, behind
an event that :mod:`corevital.engines.courier` polls. On a CPU the operations are few, and what can wait is left to the
courier: after a forward pass the caches hold weights and nothing else, and any new code takes ten times as long as it
does alone. But logits are never kept for longer than a step: the allocator would have to find new pages for the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Final

import torch

from corevital.engines.occupants import Occupants
from corevital.engines.steps import POSITION, SLOT, STATISTICS, Step, Table, Told
from corevital.frames.record import ROW, TOP_K
from corevital.kernels import token_stats_unchecked

_MOST_KEPT_BYTES: Final = 256 << 20
"""Logits kept at once: 440 rows of 151936. The engine's account of its memory does not know of them. Beyond this the
table of the 20 likeliest tokens has to do."""

_WORDS: Final = ROW.itemsize // 4
_LIKELIEST: Final = ROW.fields["topk_ids"][1] // 4  # type: ignore[index]

Post = Callable[[Step], None]
"""What takes a step on, when it has been observed and again when it is settled:
:meth:`corevital.engines.courier.Courier.post`."""

Numbers = torch.Tensor | list[int]
"""``[rows]`` int, where the logits are, or on the host."""


@dataclass(slots=True, eq=False)
class Observed:
    """Rows whose sampled tokens are not known yet.

    Attributes:
        logits: ``[R, vocab]`` as returned to the engine, whose sampler works on it in place; None once let go of.
        at: ``[rows]`` int64, which of its rows; None for all of them.
        table: ``[rows, words]`` int32 on the device, the words of a :data:`ROW`.
        step: what of them is on its way.
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
        self._kept: deque[Observed] = deque()

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
        read = logits if at is None else logits[at]
        table = torch.empty((read.shape[0], _WORDS), dtype=torch.int32, device=logits.device)
        token_stats_unchecked(read, TOP_K, table[:, STATISTICS:])
        where = None
        if isinstance(slots, list) and isinstance(positions, list):
            where = slots, positions
        elif on_host(table):
            where = _list(slots), _list(positions)
        else:
            table[:, SLOT], table[:, POSITION] = _on(slots, table), _on(positions, table)
        rows = self._to_host(table)
        step = Step(rows, where, occupants)
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
            if on_host(observed.table):
                observed.step.tokens = _told(observed, _list(tokens))
            else:
                table = _token_table(observed, _on(tokens, observed.table))
                observed.step.tokens = self._to_host(table)
        finally:
            observed.logits = None
        self._post(observed.step)

    def _to_host(self, table: torch.Tensor) -> Table:
        if not table.is_cuda:
            return Table(table if on_host(table) else table.cpu())
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


def on_host(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be read without a copy."""
    return tensor.device.type == "cpu"


def to_device(values: list[int], device: torch.device) -> torch.Tensor:
    """``[values]`` int32, without waiting for the device."""
    return torch.tensor(values, dtype=torch.int32, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _list(numbers: Numbers) -> list[int]:
    return numbers if isinstance(numbers, list) else numbers.tolist()


def _on(numbers: Numbers, table: torch.Tensor) -> torch.Tensor:
    return to_device(numbers, table.device) if isinstance(numbers, list) else numbers


def _token_table(observed: Observed, tokens: torch.Tensor) -> torch.Tensor:
    """The tokens of :class:`Step`, ``[rows, 3]``, on the device.

    A row of a prompt has a prompt's token, which may lie beyond the logits where a model has more embeddings than
    outputs; nobody will ask for its value.
    """
    logits, at = observed.logits, observed.at
    if logits is None:
        values = torch.full((len(tokens), 2), torch.nan, dtype=torch.float32, device=tokens.device)
    else:
        wanted = torch.stack((tokens, observed.table[:, _LIKELIEST]), dim=1).clamp(0, logits.shape[1] - 1).long()
        values = logits.gather(1, wanted) if at is None else logits[at[:, None], wanted]
    return torch.cat((tokens[:, None], values.float().view(torch.int32)), dim=1)


def _told(observed: Observed, tokens: list[int]) -> Told:
    """The same on the host: element by element, which costs less than numpy's way in."""
    if observed.logits is None:
        return Told(tokens, [(nan, nan)] * len(tokens))
    logits, likeliest = observed.logits.float().numpy(), observed.table.numpy()[:, _LIKELIEST].tolist()
    at, last = range(len(tokens)) if observed.at is None else observed.at.tolist(), logits.shape[1] - 1
    asked = zip(at, tokens, likeliest, strict=True)
    return Told(tokens, [(logits[row, min(token, last)], logits[row, best]) for row, token, best in asked])
