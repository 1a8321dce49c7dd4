"""Spans of time as users write them: ``90s``, ``15m``, ``1h``, ``7d``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

LONGEST: Final = timedelta(days=36500)

_FORM: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse(text: str) -> timedelta | None:
    """A span of time; None where the text has another form. A longer one than :data:`LONGEST` is ``timedelta.max``."""
    match = _FORM.fullmatch(text.strip())
    if not match:
        return None
    try:
        span = timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError:
        span = timedelta.max
    return span if span <= LONGEST else timedelta.max
