"""The output token by token: each one's shade, its text where the store keeps it, and its line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from corevital.frames.lifecycle import Segment
from corevital.text import printable, printable_lines
from corevital_otel.report import Series
from corevital_otel.store.content import Content
from corevital_otel.ui import pictures

TOKENS: Final = 1024
"""Tokens that are shown at a time."""

_SHOWN: Final = 80
"""Characters that are shown of a token, and of an alternative."""
_VALUES: Final = ("surprisal", "entropy", "margin")
_KINDS: Final = {"reasoning": "reasoning", "tool_call": "tool calls"}


def view(series: Series | None, content: Content | None, start: int, onset: object) -> dict[str, Any]:
    """The values of the template's tokens.

    Args:
        series: None where the request has none.
        content: the text; None where it is not stored.
        start: the first token that is shown.
        onset: where a loop starts; no number: there is none.
    """
    count = max(0 if series is None else len(series), 0 if content is None else len(content.tokens))
    segments = () if content is None else content.segments
    return {
        "tokens": _tokens(series, content, range(min(start, count), min(start + TOKENS, count)), onset),
        "count": count,
        "start": start,
        "step": TOKENS,
        "has_text": content is not None,
        "cut_at": None if content is None or len(content.tokens) >= content.total else len(content.tokens),
        "kinds": [(kind, title) for kind, title in _KINDS.items() if any(each.kind == kind for each in segments)],
    }


def _tokens(series: Series | None, content: Content | None, places: range, onset: object) -> list[dict[str, Any]]:
    first = onset if isinstance(onset, int) else math.inf
    texts = () if content is None else content.tokens
    kinds = [""] * len(places) if content is None else _kinds(content.segments, places)
    return [
        {
            "at": at,
            "shade": pictures.shade(values[0]),
            "kind": kind,
            "text": printable_lines(texts[at])[: 4 * _SHOWN] if at < len(texts) else "",
            "about": _about(at, values, content),
            "loop": at >= first,
            "onset": at == first,
        }
        for at, values, kind in zip(places, _values(series, places), kinds, strict=True)
    ]


def _values(series: Series | None, places: range) -> Sequence[tuple[float, ...]]:
    """Surprisal, entropy and margin at each place, NaN where not known."""
    known: list[tuple[float, ...]] = []
    if series is not None:
        columns = (getattr(series, name)[places.start : places.stop].tolist() for name in _VALUES)
        known = list(zip(*columns, strict=True))
    return known + [(math.nan,) * len(_VALUES)] * (len(places) - len(known))


def _about(at: int, values: Sequence[float], content: Content | None) -> str:
    """One line on a token."""
    surprisal, entropy, margin = map(_value, values)
    text = "" if content is None or at >= len(content.tokens) else f" {_quoted(content.tokens[at])}"
    line = f"token {at}{text} · surprisal {surprisal} · entropy {entropy} bits · margin {margin}"
    if content is not None and at < len(content.alternatives) and (likely := content.alternatives[at]):
        line += f" · likeliest: {', '.join(f'{_quoted(piece)} {share:.1%}' for piece, share in likely)}"
    return line


def _quoted(text: str) -> str:
    return f"“{printable(text, _SHOWN)}”" if text else "(part of a character)"


def _value(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "unknown"


def _kinds(segments: Sequence[Segment], places: range) -> list[str]:
    """The kind of part that each place is in; "" in the answer."""
    kinds = [""] * len(places)
    for kind, start, end in segments:
        for at in range(max(start, places.start), min(end, places.stop)):
            kinds[at - places.start] = kind if kind in _KINDS else ""
    return kinds
