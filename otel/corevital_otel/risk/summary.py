"""A request's parameters, and the parts of its output, in words: for the command line and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from corevital_otel import conventions as names

_PARAMETERS: Final = ("temperature", "top_p", "top_k", "max_tokens", "seed")
_SEGMENTS: Final = {"reasoning": "reasoning", "answer": "answer", "tool_call": "tool calls"}


def parameters(summary: Mapping[str, Any]) -> str:
    """The sampling parameters that are known; a whole number, such as a seed, with all its digits."""
    known = ((name, summary.get(f"gen_ai.request.{name}")) for name in _PARAMETERS)
    return ", ".join(
        f"{name} {value}" if isinstance(value, int) else f"{name} {value:g}"
        for name, value in known
        if is_number(value)
    )


def parts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parts of the output, where they are known; and the tokens that a grammar forced.

    Args:
        summary: the attributes of a span; any may be of any type.

    Returns:
        Names, and what each part is.
    """
    rows: list[tuple[str, str]] = []
    for kind, prefix in names.SEGMENTS.items():
        tokens = summary.get(prefix + "tokens")
        if is_number(tokens):
            means = [(what, summary.get(f"{prefix}{what}.mean")) for what in ("entropy", "surprisal")]
            words = [
                f"{int(tokens)} tokens",
                *(f"{what} {value:.3g} bits" for what, value in means if is_number(value)),
            ]
            of = "; the risk is of this part" if summary.get(names.RISK_SEGMENT) == kind else ""
            rows.append((_SEGMENTS[kind], ", ".join(words) + of))
    forced = summary.get(names.TOKENS_FORCED)
    if is_number(forced) and int(forced):
        rows.append(("forced", f"{int(forced)} tokens were the only ones allowed: they count in no statistic"))
    return rows


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of a row is a finite number that can be printed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False
