"""Statistics of logits in plain torch operations: any device, and no host synchronisation on CUDA.

Reads and writes the logits several times over; the other backends are there for speed. Nothing here depends on values
on the host: no ``item()``, no boolean indexing, no shape that follows from data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from corevital.kernels.stats import MASS_TOKENS, TokenStats

__all__ = ["supports", "token_stats", "warm_up"]

# Rows are worked on in slices of about this many logits. On a GPU that bounds the temporaries, some 40 bytes a logit,
# to what an engine that has claimed its memory still has room for; on a CPU it keeps them in the caches, twice as fast.
_SLICE_LOGITS = 1 << 22
_SLICE_LOGITS_CPU = 1 << 18

# exp underflows to 0 in float32 well before this, so that exp(u) * u is 0 there, not the NaN of 0 * -inf.
_LOWEST = -200.0

_LOW_31_BITS = 0x7FFFFFFF
_NO_ENTRY = torch.iinfo(torch.int32).min  # below -inf, as ordered integers
_GROUP = 64


def supports(device: torch.device) -> bool:
    """Whether logits on this device can be read: always."""
    return True


def warm_up(vocab_size: int, device: torch.device) -> None:
    """Run once, so that libraries and CUDA modules are loaded."""
    for dtype in (torch.float32, torch.bfloat16):
        token_stats(torch.zeros(1, vocab_size, dtype=dtype, device=device), MASS_TOKENS)


def token_stats(logits: Tensor, top_k: int, out: Tensor | None = None) -> TokenStats:
    """Statistics of each row; see :func:`corevital.kernels.token_stats`.

    Args:
        logits: ``[rows, vocab]``, float32 or bfloat16, without gradient.
        top_k: at least 1.
        out: where the words go, or None.
    """
    step = max(1, (_SLICE_LOGITS_CPU if logits.device.type == "cpu" else _SLICE_LOGITS) // logits.shape[1])
    parts = [_words(part, top_k) for part in torch.split(logits, step)]
    words = parts[0] if len(parts) == 1 else torch.cat(parts)
    return TokenStats(words if out is None else out.copy_(words))


def _words(logits: Tensor, top_k: int) -> Tensor:
    # Adding zero turns -0.0 into 0.0, so that the two have the same bits below.
    x = logits.float() + 0.0  # [rows, vocab]
    is_nan = x.isnan()
    is_finite = x.abs() < math.inf
    nan_count = _count(is_nan)
    posinf_count = _count(x == math.inf)
    neginf_count = _count(x == -math.inf)

    # The largest finite logit is subtracted first: exact at any magnitude, and exp cannot overflow.
    peak = x.masked_fill(~is_finite, -math.inf).amax(dim=1)  # [rows]
    undefined = (posinf_count > 0) | (peak == -math.inf)
    origin = peak.masked_fill(peak == -math.inf, 0.0)
    u = (x - origin[:, None]).masked_fill(~is_finite, _LOWEST).clamp(min=_LOWEST)
    e = u.exp()  # [rows, vocab], p = e / total
    total = e.sum(dim=1)
    log_total = total.log()
    # With ln p = u - ln(total): H = ln(total) - E[u], and the variance of ln p is that of u.
    mean_u = (e * u).sum(dim=1) / total
    entropy = log_total - mean_u
    varentropy = (e * (u - mean_u[:, None]).square()).sum(dim=1) / total
    logsumexp = (origin + log_total).masked_fill(posinf_count > 0, math.inf)

    values, ids = _ranked(x, is_nan, max(top_k, MASS_TOKENS))
    logprobs = (values - origin[:, None] - log_total[:, None]).clamp(max=0.0)
    # A row without a finite entry has log_total = -inf, hence NaN above.
    logprobs = logprobs.masked_fill(values == -math.inf, -math.inf).masked_fill(values == math.inf, math.inf)
    probs = logprobs.exp()

    scalars = (
        logsumexp,
        _where_defined(entropy.clamp(min=0.0), undefined),
        _where_defined(varentropy, undefined),
        values[:, 0],
        _where_defined(probs[:, 0], undefined),
        _where_defined(probs[:, 0] - probs[:, 1], undefined),
        _where_defined(probs[:, :MASS_TOKENS].sum(dim=1).clamp(max=1.0), undefined),
    )
    return torch.cat(
        (
            torch.stack((nan_count, posinf_count, neginf_count), dim=1),
            torch.stack(scalars, dim=1).view(torch.int32),
            torch.full_like(nan_count, x.shape[1])[:, None],
            ids[:, :top_k],
            logprobs[:, :top_k].contiguous().view(torch.int32),
        ),
        dim=1,
    )


def _ranked(x: Tensor, is_nan: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest entries that are not NaN, equal ones by rising id: values and ids, ``[rows, k]``.

    They lie in the k groups of neighbours with the highest maxima, equal maxima by rising position: whatever lies
    outside comes after k other entries. Therefore only those groups are ranked entry by entry.
    """
    rows, vocab = x.shape
    groups = -(-vocab // _GROUP)
    bits = x.view(torch.int32)
    # IEEE 754: as integers, positive floats are in order, and negative ones in reverse.
    ordered = (bits ^ ((bits >> 31) & _LOW_31_BITS)).masked_fill(is_nan, _NO_ENTRY)
    ordered = pad(ordered, (0, groups * _GROUP - vocab), value=_NO_ENTRY).view(rows, groups, _GROUP)
    positions = torch.arange(groups, device=x.device).expand(rows, groups)
    _, best = _highest(ordered.amax(dim=2), positions, min(k, groups))  # [rows, groups kept]
    entries = ordered.gather(1, best[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    positions = (best[:, :, None] * _GROUP + torch.arange(_GROUP, device=x.device)).flatten(1)
    ordered, ids = _highest(entries, positions, min(k, entries.shape[1]))
    missing = k - ids.shape[1]  # a vocabulary smaller than k
    ordered = pad(ordered, (0, missing), value=_NO_ENTRY)
    none = ordered == _NO_ENTRY
    values = (ordered ^ ((ordered >> 31) & _LOW_31_BITS)).view(torch.float32).masked_fill(none, -math.inf)
    ids = pad(ids, (0, missing)).to(torch.int32).masked_fill(none, -1)
    return values, ids


def _highest(ordered: Tensor, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest int32 of each row and their int64 positions, equal ones by rising position.

    ``torch.topk`` promises no order among equal values, so it is given integers of which no two are equal: above, the
    value; below, the position, counted down.
    """
    keys = ((ordered.to(torch.int64) << 32) | (_LOW_31_BITS - positions)).topk(k, dim=1).values
    return (keys >> 32).to(torch.int32), _LOW_31_BITS - (keys & _LOW_31_BITS)


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dim=1, dtype=torch.int32)


def _where_defined(values: Tensor, undefined: Tensor) -> Tensor:
    return values.masked_fill(undefined, math.nan)
