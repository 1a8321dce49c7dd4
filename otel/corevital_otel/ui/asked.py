"""What a page is asked for: filters, order and page number, as they stand in the URL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from corevital.text import MAX_BYTES, printable
from corevital_otel import conventions as names
from corevital_otel import durations
from corevital_otel.risk.meaning import short_flag
from corevital_otel.store.listing import SORTS, Filter

FLAGS: Final = (*names.FLAGS, *names.CONDITIONS)
LEVELS: Final = ("high", "medium", "low", "unknown")
PERIODS: Final = {"15m": "last 15 min", "1h": "last hour", "6h": "last 6 h", "24h": "last 24 h", "7d": "last 7 days"}
FILTERS: Final = ("since", "until", "model", "flag", "risk", "above", "tag", "id")

_NEWEST_FIRST: Final = "-time"
_LAST_PAGE: Final = 1_000_000
_SHOWN: Final = 60


class AskedError(ValueError):
    """A part of the URL has no meaning. Its text is one line that names the cause and the fix."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the URL asks for.

    Attributes:
        given: the filters that are set, as texts.
        which: the same for the store.
        sort, descending: the order.
        page: number of the page, from 0.
    """

    given: Mapping[str, str]
    which: Filter
    sort: str = "time"
    descending: bool = True
    page: int = 0

    @property
    def form(self) -> dict[str, str]:
        """Every filter as a form shows it; "" where it is not set."""
        return {name: self.given.get(name, "") for name in FILTERS}

    @property
    def order(self) -> str:
        """The order as it stands in the URL."""
        return f"{'-' if self.descending else ''}{self.sort}"

    def link(self, path: str, **changes: object) -> str:
        """A URL with these filters, and with changes; a part that is empty or the default is left out."""
        parts: dict[str, object] = {**self.given, "sort": self.order, "page": self.page, **changes}
        defaults = {"sort": _NEWEST_FIRST, "page": 0}
        kept = {name: value for name, value in parts.items() if value not in ("", None, defaults.get(name))}
        return f"{path}?{urlencode(kept)}" if kept else path

    def order_by(self, sort: str) -> str:
        """The order that a click on a column's head asks for: the highest first, then the lowest."""
        return sort if self.sort == sort and self.descending else f"-{sort}"


def read(parameters: Mapping[str, str]) -> Asked:
    """The filters of a URL. Unknown parameters are ignored.

    Raises:
        AskedError: one has no meaning.
    """
    given = {name: text for name in FILTERS if (text := parameters.get(name, "").strip())}
    for name, text in given.items():
        if len(text.encode("utf-8", "replace")) > MAX_BYTES:
            raise AskedError(f"{name} is longer than {MAX_BYTES} bytes: shorten it")
    if (asked := given.get("flag")) is not None:
        flag = next((flag for flag in FLAGS if asked in (flag, short_flag(flag))), None)
        if flag is None:
            raise _wrong("flag", asked, f"one of {', '.join(FLAGS)}")
        given["flag"] = flag
    if given.get("risk", LEVELS[0]) not in LEVELS:
        raise _wrong("risk", given["risk"], f"one of {', '.join(LEVELS)}")
    which = Filter(
        since=_moment("since", given),
        until=_moment("until", given),
        model=given.get("model", ""),
        flag=given.get("flag", ""),
        level=given.get("risk", ""),
        above=_score(given),
        tag=given.get("tag", ""),
        text=given.get("id", ""),
    )
    order = parameters.get("sort") or _NEWEST_FIRST
    if order.removeprefix("-") not in SORTS:
        raise _wrong("sort", order, f"one of {', '.join(SORTS)}, with - before it for the highest first")
    return Asked(given, which, order.removeprefix("-"), order.startswith("-"), _page(parameters.get("page", "")))


def _moment(name: str, given: Mapping[str, str]) -> datetime | None:
    """A moment, from a time span before now or from ISO 8601, UTC where it names no offset."""
    text = given.get(name)
    if text is None:
        return None
    span = durations.parse(text)
    try:
        if span is not None:
            return datetime.now(UTC) - span
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _wrong(name, text, "a time span such as 1h or 7d, or a time such as 2026-01-31T12:00") from None


def _score(given: Mapping[str, str]) -> float | None:
    text = given.get("above")
    if text is None:
        return None
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise _wrong("above", text, "a number from 0 to 1")
    return score


def _page(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and int(text[:9]) <= _LAST_PAGE):
        raise _wrong("page", text, "a whole number from 0 up")
    return int(text[:9])


def _wrong(name: str, text: str, allowed: str) -> AskedError:
    return AskedError(f"{name}={printable(repr(text[:_SHOWN]))} is not allowed: use {allowed}")
