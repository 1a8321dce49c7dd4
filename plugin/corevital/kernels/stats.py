"""What every kernel backend returns, and the conventions that all of them keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

MASS_TOKENS: Final = 10
"""``TokenStats.topk_mass`` is the probability of this many likeliest tokens, whatever ``top_k`` is."""

HEAD_WORDS: Final = 11
"""Words in a row of ``TokenStats.words`` before its top k."""


class BackendUnavailableError(RuntimeError):
    """The kernel backend that was asked for cannot run here; the message says why, and what to do about it."""


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

    Args:
        words: ``[rows, HEAD_WORDS + 2 * top_k]`` int32, what a backend makes: the counts of NaN, +inf and -inf; as the
            bits of float32, logsumexp, entropy, varentropy, max_logit, top1_prob, margin and topk_mass; ``vocab``;
            ids; log-probabilities, again as bits. The fields are views of it, made when they are asked for.
    """

    __slots__ = ("words",)

    def __init__(self, words: Tensor) -> None:
        self.words: Final = words

    def _float(self, column: int) -> Tensor:
        return self._floats()[:, column]

    def _floats(self) -> Tensor:
        import torch  # here: the backends' names are read without torch

        return self.words.view(torch.float32)

    @property
    def nan_count(self) -> Tensor:
        """int32 ``[rows]``, NaN entries."""
        return self.words[:, 0]

    @property
    def posinf_count(self) -> Tensor:
        """int32 ``[rows]``, ``+inf`` entries."""
        return self.words[:, 1]

    @property
    def neginf_count(self) -> Tensor:
        """int32 ``[rows]``, ``-inf`` entries."""
        return self.words[:, 2]

    @property
    def logsumexp(self) -> Tensor:
        """float32 ``[rows]``, ln of the sum of exp(logit).

        ``+inf`` in a row with ``+inf``, ``-inf`` in one with neither ``+inf`` nor a finite entry.
        """
        return self._float(3)

    @property
    def entropy(self) -> Tensor:
        """float32 ``[rows]``, H = -sum(p ln p), nats."""
        return self._float(4)

    @property
    def varentropy(self) -> Tensor:
        """float32 ``[rows]``, the variance of the surprisal, sum(p (-ln p - H)^2), nats^2."""
        return self._float(5)

    @property
    def max_logit(self) -> Tensor:
        """float32 ``[rows]``, the largest entry that is not NaN; ``-inf`` where there is none."""
        return self._float(6)

    @property
    def top1_prob(self) -> Tensor:
        """float32 ``[rows]``, probability of the likeliest token."""
        return self._float(7)

    @property
    def margin(self) -> Tensor:
        """float32 ``[rows]``, p1 - p2, of the two likeliest tokens; p2 is 0 in a row with one finite entry."""
        return self._float(8)

    @property
    def topk_mass(self) -> Tensor:
        """float32 ``[rows]``, probability of the :data:`MASS_TOKENS` likeliest tokens together."""
        return self._float(9)

    @property
    def topk_ids(self) -> Tensor:
        """int32 ``[rows, top_k]``, token ids."""
        return self.words[:, HEAD_WORDS : (HEAD_WORDS + self.words.shape[1]) // 2]

    @property
    def topk_logprobs(self) -> Tensor:
        """float32 ``[rows, top_k]``, ln p, nats."""
        return self._floats()[:, (HEAD_WORDS + self.words.shape[1]) // 2 :]
