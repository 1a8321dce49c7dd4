"""The statistics once more, from their definitions, in float64, a row at a time. Shares no code with the product."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def reference(logits: Array, top_k: int) -> dict[str, Array]:
    """What each field of the result should be for logits ``[rows, vocab]``."""
    rows = [_row(row.astype(np.float64), top_k) for row in logits]
    if not rows:
        one = _row(np.zeros(1), top_k)
        return {name: np.empty((0, *np.shape(value))) for name, value in one.items()}
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _row(row: Array, top_k: int) -> dict[str, Any]:
    ids = np.flatnonzero(~np.isnan(row))
    ids = ids[np.lexsort((ids, -row[ids]))]  # by logit, falling; then by id, rising
    ranked = row[ids]
    finite = row[np.isfinite(row)]
    posinf = int(np.sum(row == np.inf))

    peak = finite.max() if finite.size else 0.0
    log_total = np.log(np.sum(np.exp(finite - peak))) if finite.size else 0.0
    surprisal = log_total - (finite - peak)
    p = np.exp(-surprisal)
    logprobs = np.where(np.isinf(ranked), ranked, ranked - peak - log_total)

    result: dict[str, Any] = {
        "max_logit": ranked[0] if ranked.size else -np.inf,
        "topk_ids": _padded(ids, top_k, -1),
        "topk_logprobs": _padded(logprobs, top_k, -np.inf),
        "nan_count": int(np.sum(np.isnan(row))),
        "posinf_count": posinf,
        "neginf_count": int(np.sum(row == -np.inf)),
    }
    if posinf or not finite.size:
        result["logsumexp"] = np.inf if posinf else -np.inf
        for name in ("entropy", "varentropy", "top1_prob", "margin", "topk_mass"):
            result[name] = np.nan
        return result
    entropy = np.sum(p * surprisal)
    likeliest = np.append(np.sort(p)[::-1], 0.0)
    result["logsumexp"] = peak + log_total
    result["entropy"] = entropy
    result["varentropy"] = np.sum(p * (surprisal - entropy) ** 2)
    result["top1_prob"] = likeliest[0]
    result["margin"] = likeliest[0] - likeliest[1]
    result["topk_mass"] = np.sum(likeliest[:10])
    return result


def _padded(values: Array, size: int, fill: float) -> Array:
    return np.concatenate([values[:size], np.full(max(0, size - len(values)), fill)])
