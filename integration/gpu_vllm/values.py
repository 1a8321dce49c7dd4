"""The plugin's values of each token against vLLM's own ``logprobs=20`` of the same request."""

from __future__ import annotations

import math

import numpy as np
from integration.gpu_vllm.jobs import Answer

from corevital_otel.report import Series

TOLERANCE = 1e-3
"""Bits, or probability. Both sides compute in float32 from the same logits."""


def entropy_bounds(logprobs: list[float], vocab: int) -> tuple[float, float]:
    """What the highest logprobs (nats, highest first) leave for the entropy, bits.

    The rest of the probability is over tokens of which none is likelier than the last one here: spread evenly over all
    of them it adds most, in as few tokens as that allows it adds least.
    """
    known = -sum(math.exp(value) * value for value in logprobs)
    rest = max(1 - sum(map(math.exp, logprobs)), 0.0)
    if rest < 1e-9 or vocab <= len(logprobs):
        return known / math.log(2), known / math.log(2)
    highest = -math.log(rest / (vocab - len(logprobs)))
    return (known - rest * logprobs[-1]) / math.log(2), (known + rest * highest) / math.log(2)


def differences(answer: Answer, series: list[Series | None], vocab: int) -> dict[str, float]:
    """Largest absolute difference by value; NaN where one is missing. The entropy's is how far it is out of its bounds.

    Args:
        answer: to requests with ``logprobs=20``.
        series: what the plugin found, of the same requests.
        vocab: width of the logits.
    """
    found: dict[str, list[float]] = {"surprisal": [], "margin": [], "topk_mass": [], "entropy": []}
    for tokens, own in zip(answer.logprobs, series, strict=True):
        if own is None or len(own) != len(tokens):
            return dict.fromkeys(found, math.nan)
        for index, (sampled, highest) in enumerate(tokens):
            low, high = entropy_bounds(highest, vocab)
            entropy = float(own.entropy[index])
            wanted = {
                "surprisal": -sampled / math.log(2),
                "margin": math.exp(highest[0]) - math.exp(highest[1]),
                "topk_mass": sum(map(math.exp, highest[:10])),
                "entropy": float(np.clip(entropy, low, high)),
            }
            for name, value in wanted.items():
                found[name].append(abs(float(getattr(own, name)[index]) - value))
    return {name: float(np.max(values)) for name, values in found.items()}
