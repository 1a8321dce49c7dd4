"""The list of requests: one page of it, how many there are, and what can be chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from corevital_otel import conventions as names
from corevital_otel.risk.meaning import stopped
from corevital_otel.store.listing import MOST_COUNTED, Choices, Listing
from corevital_otel.store.reader import StoredReport
from corevital_otel.ui.asked import FLAGS, LEVELS, PERIODS, Asked

ROWS: Final = 50
"""Requests of a page."""

_COLUMNS: Final = (
    ("time", "ended (UTC)"),
    ("", "request"),
    ("", "model"),
    ("tokens", "tokens"),
    ("", "finish"),
    ("", "entropy"),
    ("risk", "risk"),
    ("", "flags"),
)


def view(db: Path, asked: Asked, *, part: bool) -> dict[str, Any]:
    """The values of the list's template.

    Args:
        db: the store.
        asked: which requests.
        part: only the list is needed, not the form around it.

    Raises:
        StoreError: the store cannot be read.
    """
    store = Listing(db)
    total = store.how_many(asked.which)
    rows = store.page(asked.which, asked.sort, descending=asked.descending, size=ROWS, number=asked.page)
    first = asked.page * ROWS
    return {
        "asked": asked,
        "rows": [_row(report) for report in rows],
        "columns": _COLUMNS,
        "total": f"{MOST_COUNTED:,}+" if total > MOST_COUNTED else f"{total:,}",
        "first": first + 1,
        "last": first + len(rows),
        "more": total > first + ROWS,
        "damage": f"{store.damaged} damaged rows left out ({store.damage})" if store.damaged else "",
        "choices": Choices([], []) if part else store.choices(),
        **choices(),
    }


def choices() -> dict[str, Any]:
    """What filters with a fixed set of values can be set to."""
    return {"flags": FLAGS, "levels": LEVELS, "periods": PERIODS}


def _row(report: StoredReport) -> dict[str, Any]:
    entropy = report.summary.get(names.FEATURES["entropy_mean"])
    return {
        "id": report.request_id,
        "span": report.span_id,
        "sequence": report.sequence,
        "time": report.created_at_utc,
        "model": report.model,
        "prompt_tokens": report.prompt_tokens,
        "tokens": report.output_tokens,
        "finish": report.finish_reason,
        "stopped": stopped(report.summary),
        "entropy": entropy if isinstance(entropy, int | float) else None,
        "score": report.risk_score,
        "level": level(report.risk_level),
        "basis": report.risk_basis,
        "flags": [(flag, flag in names.HARMLESS) for flag in report.flags],
    }


def level(text: str) -> str:
    """A risk level that a style has; a row may have been edited."""
    return text if text in LEVELS else LEVELS[-1]
