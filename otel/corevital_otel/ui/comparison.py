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
from corevital_otel.store.listing import Filter, Listing
from corevital_otel.store.reader import StoreReader

_REACH: Final = 2.0
"""Standard deviations to each end of the picture of an interval."""
_LOOKED_AT: Final = (200, MOST_ROWS)
"""Newest requests among which one to compare is looked for: few first, then as many as a slice has."""
_NEEDS_SCIPY: Final = "comparing needs scipy: pip install 'corevital[ui]'"


def view(db: Path, a: str, b: str) -> dict[str, Any]:
    """The values of the template. ``error`` is "", or one line: a slice has no meaning, or no requests.

    Args:
        db: the store; no other one can be named.
        a, b: the slices, as after the ``@`` of ``corevital compare``; "" for both shows only the form.

    Raises:
        StoreError: the store cannot be read.
    """
    days, others = _days(db), _named(db)
    values: dict[str, Any] = {"a": a, "b": b, "found": None, "error": "", "damage": ""}
    values |= {"examples": [*days, *others], "days": [text for text, _ in days]}
    if not (a or b):
        return values
    try:
        sides = [Slice.within(db, text) for text in (a, b)]
        exact = all(side.is_exact() for side in sides)
        (first, damage), (second, more) = (side.read() for side in sides)
        found = compare(first, second, exact=exact)
    except SliceError as error:
        return values | {"error": str(error)}
    except ModuleNotFoundError:
        return values | {"error": _NEEDS_SCIPY}
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


def _named(db: Path) -> list[tuple[str, str]]:
    """Slices by attribute: each model and each engine version."""
    models: Sequence[str] = Listing(db).choices().models
    versions = sorted(StoreReader(db).resource_values(f"{names.RESOURCE_ENGINE}version"))
    named = [(f"model={model}", "model") for model in models]
    return [*named, *((f"engine.version={version}", "engine version") for version in versions)]


def _days(db: Path) -> list[tuple[str, str]]:
    """Of the last 24 hours and the day before, those that have requests to compare."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    first, second = now - timedelta(days=2), now - timedelta(days=1)
    spans = ((second, None, "the last 24 hours"), (first, second, "the day before"))
    return [
        ("..".join(_minute(moment) for moment in (since, until)), title)
        for since, until, title in spans
        if _has_requests(db, since, until)
    ]


def _minute(moment: datetime | None) -> str:
    return "" if moment is None else moment.replace(tzinfo=None).isoformat(timespec="minutes")


def _has_requests(db: Path, since: datetime, until: datetime | None) -> bool:
    """Whether a time has a request that :meth:`Slice.read` does not leave out."""
    store, which = Listing(db), Filter(since=since, until=until)
    for most in _LOOKED_AT:
        rows = store.values(which, (names.ROLE, names.SAMPLED), most)
        if any(role is None and sampled != 0 for *_, role, sampled in rows):
            return True
        if len(rows) < most:
            return False
    return False
