"""Features as text for people."""

from __future__ import annotations

from typing import Final

TEXTS: Final = {
    "tokens": "{} tokens long",
    "entropy_mean": "mean entropy {} bits",
    "entropy_max": "entropy peak {} bits",
    "entropy_std": "entropy spread {} bits",
    "entropy_slope": "entropy trend {} bits a token",
    "entropy_sum": "total entropy {} bits",
    "entropy_early": "entropy at its beginning {} bits",
    "entropy_change": "entropy change to its end {} bits",
    "entropy_group_max": "least sure stretch {} bits of entropy",
    "entropy_bursts": "{} bursts of entropy",
    "entropy_rebound": "entropy rebound {} bits",
    "high_entropy_steps": "{} high-entropy steps",
    "high_entropy_run": "{} high-entropy steps in a row",
    "surprisal_mean": "mean surprisal {} bits",
    "surprisal_max": "surprisal peak {} bits",
    "surprisal_std": "surprisal spread {} bits",
    "surprisal_sum": "total surprisal {} bits",
    "surprisal_early": "surprisal at its beginning {} bits",
    "perplexity": "perplexity {}",
    "margin_mean": "mean margin {}",
    "margin_min": "closest margin {}",
    "margin_early": "margin at its beginning {}",
    "margin_close_share": "share of close choices {}",
    "topk_mass_mean": "mass of the 10 likeliest tokens {}",
    "confidence_mean": "mean confidence {} nats",
    "confidence_min": "least confident stretch {} nats",
    "confidence_early": "confidence at its beginning {} nats",
    "confidence_tail": "confidence at its end {} nats",
    "confidence_change": "confidence change to its end {} nats",
    "repetition_share": "repeated share {}",
}
"""A format of the value, by feature."""


def describe(name: str, value: float) -> str:
    """A feature in words: ``total entropy 157 bits``."""
    return TEXTS[name].format(number(value))


def number(value: float) -> str:
    """Three digits, without an exponent for ordinary numbers: ``157``, ``0.88``, ``1e-05``."""
    return (
        f"{value:.0f}"
        if 1000 > abs(value) >= 100 or value == int(value)
        else f"{value:.3g}"
        if abs(value) < 100
        else f"{value:,.0f}"
    )
