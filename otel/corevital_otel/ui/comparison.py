"""Two slices of the store side by side, as ``corevital compare`` judges them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from corevital_otel import conventions as names
from corevital_otel.compare.shifts import Shift
from corevital_otel.compare.slices import MOST_ROWS, Slice, SliceError
from corevital_otel.compare.verdict import Comparison, compare
from corevital_otel.store.listing import Listing
from corevital_otel.store.reader import StoreReader
from corevital_otel.ui.asked import AskedError

_REACH: Final = 2.0
"""Standard deviations to each end of the picture of an interval."""
_NEEDS_SCIPY: Final = "comparing needs scipy: pip install 'corevital[ui]'"


def view(db: Path, a: str, b: str) -> dict[str, Any]:
    """The values of the template.

    Args:
        db: the store; no other one can be named.
        a, b: the slices, as after the ``@`` of ``corevital compare``; "" for both shows only the form.

    Raises:
        StoreError: the store cannot be read.
        AskedError: a slice has no meaning, or no requests.
    """
    values: dict[str, Any] = {"a": a, "b": b, "found": None, "examples": _examples(db), "damage": ""}
    if not (a or b):
        return values
    try:
        sides = [Slice.within(db, text) for text in (a, b)]
        exact = all(side.is_exact() for side in sides)
        (first, damage), (second, more) = (side.read() for side in sides)
        found = compare(first, second, exact=exact)
    except SliceError as error:
        raise AskedError(str(error)) from None
    except ModuleNotFoundError:
        raise AskedError(_NEEDS_SCIPY) from None
    return values | {
        "found": found,
        "needed": found.requests_needed,
        "newest": [count == MOST_ROWS for count in found.requests],
        "signals": [_row(one) for one in found.signals],
        "reasons": found.reasons,
        "answers": _answers(found),
        "damage": damage or more,
    }


def _row(one: Shift) -> dict[str, Any]:
    """A signal, with its interval as a picture from -2 to 2 standard deviations of A."""
    scale = one.deviations / one.shift if one.shift else 0.0
    low, high = sorted((one.low * scale, one.high * scale)) if scale else (0.0, 0.0)
    left, right = (50 + 50 * max(-1.0, min(1.0, end / _REACH)) for end in (low, high))
    middle = 50 + 50 * max(-1.0, min(1.0, one.deviations / _REACH))
    return {"one": one, "left": left, "width": max(right - left, 0.8), "middle": middle}


def _answers(found: Comparison) -> str:
    if (answers := found.fidelity) is None:
        return ""
    against = "themselves" if answers.repeated else "rounding in float32"
    return (
        f"At temperature 0, {answers.differ} of {answers.prompts} prompts are answered differently, compared with "
        f"{against} ({answers.low:.0%} to {answers.high:.0%})."
    )


def _examples(db: Path) -> list[tuple[str, str]]:
    """What a slice can be: each model, each engine version, and days."""
    models: Sequence[str] = Listing(db).choices().models
    versions = sorted(StoreReader(db).resource_values(f"{names.RESOURCE_ENGINE}version"))
    now = datetime.now(UTC).replace(second=0, microsecond=0, tzinfo=None)
    day = timedelta(days=1)
    times = [
        (f"{(now - day).isoformat(timespec='minutes')}..", "the last 24 hours"),
        (
            f"{(now - 2 * day).isoformat(timespec='minutes')}..{(now - day).isoformat(timespec='minutes')}",
            "the day before",
        ),
    ]
    named = [(f"model={model}", "model") for model in models]
    return [*times, *named, *((f"engine.version={version}", "engine version") for version in versions)]
