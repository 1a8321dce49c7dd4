"""What every kernel backend returns, and the conventions that all of them keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

MASS_TOKENS: Final = 10
"""``TokenStats.topk_mass`` is the probability of this many likeliest tokens, whatever ``top_k`` is."""


class BackendUnavailableError(RuntimeError):
    """The kernel backend that was asked for cannot run here; the message says why, and what to do about it."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenStats:
    """Statistics of each row of a ``[rows, vocab]`` logits tensor, all on that tensor's device.

    With p = softmax over a row's entries, NaN left out, and entropies in nats:

    - NaN entries are left out of every statistic, are never among the top k, and are counted.
    - ``-inf`` is a masked token: probability 0.
    - A row with ``+inf``, or without any finite entry, has no distribution: ``entropy``, ``varentropy``,
      ``top1_prob``, ``margin`` and ``topk_mass`` are NaN.
    - The top k are ranked by logit, highest first; equal logits (``-0.0`` equals ``0.0``) by token id, lowest first.
      Masked tokens take part, with log-probability ``-inf``, so they appear only where fewer than ``top_k`` entries
      are above ``-inf``. Places that no entry is left for hold id -1 and log-probability ``-inf``.
    - In a row with ``+inf``, those entries come first, with log-probability ``+inf``; the log-probabilities of finite
      entries are over the finite entries alone.

    Attributes:
        logsumexp: float32 ``[rows]``, ln of the sum of exp(logit); ``+inf`` in a row with ``+inf``, ``-inf`` in one
            with neither ``+inf`` nor a finite entry.
        entropy: float32 ``[rows]``, H = -sum(p ln p), nats.
        varentropy: float32 ``[rows]``, the variance of the surprisal, sum(p (-ln p - H)^2), nats^2.
        max_logit: float32 ``[rows]``, the largest entry that is not NaN; ``-inf`` where there is none.
        top1_prob: float32 ``[rows]``, probability of the likeliest token.
        margin: float32 ``[rows]``, p1 - p2, the probabilities of the two likeliest tokens; p2 is 0 in a row with one
            finite entry.
        topk_mass: float32 ``[rows]``, probability of the :data:`MASS_TOKENS` likeliest tokens together.
        topk_ids: int32 ``[rows, top_k]``, token ids.
        topk_logprobs: float32 ``[rows, top_k]``, ln p, nats.
        nan_count: int32 ``[rows]``, NaN entries.
        posinf_count: int32 ``[rows]``, ``+inf`` entries.
        neginf_count: int32 ``[rows]``, ``-inf`` entries.
    """

    logsumexp: Tensor
    entropy: Tensor
    varentropy: Tensor
    max_logit: Tensor
    top1_prob: Tensor
    margin: Tensor
    topk_mass: Tensor
    topk_ids: Tensor
    topk_logprobs: Tensor
    nan_count: Tensor
    posinf_count: Tensor
    neginf_count: Tensor
