"""Requests of a store by page: filtered, sorted, counted. For a store of any size; each query has a time limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pydantic_core

from corevital_otel import conventions as names
from corevital_otel.store.files import Limit, StoreError
from corevital_otel.store.reader import StoredReport, StoreReader
from corevital_otel.store.rows import iso

MOST_COUNTED: Final = 100_000
"""A list's length is counted up to here."""
SECONDS: Final = 10.0
"""How long a query may take."""

_SORTS: Final = {"time": "created_at_utc", "risk": "risk_score", "tokens": "output_tokens", "prompt": "prompt_tokens"}
SORTS: Final = tuple(_SORTS)
_NEWEST: Final = 20_000
"""Rows whose models are offered as choices."""
_TAGGED: Final = 2_000
"""Rows whose tags are."""
_MOST_CHOICES: Final = 200
_TAGS_PATH: Final = f'$."{names.TAGS}"'


@dataclass(frozen=True, slots=True)
class Filter:
    """Which requests. What is None or empty allows all.

    Attributes:
        since, until: ended from the first moment on, and before the second.
        model: of this model.
        flag: with this flag.
        level: of this risk level.
        above: with a score from this on.
        tag: with this tag.
        text: whose id contains this, in any case.
    """

    since: datetime | None = None
    until: datetime | None = None
    model: str = ""
    flag: str = ""
    level: str = ""
    above: float | None = None
    tag: str = ""
    text: str = ""

    def where(self) -> tuple[str, list[Any]]:
        """The SQL condition, and its values."""
        conditions: list[str] = []
        values: list[Any] = []

        def add(condition: str, *given: Any) -> None:
            conditions.append(condition)
            values.extend(given)

        if self.since is not None:
            add("created_at_utc >= ?", iso(self.since))
        if self.until is not None:
            add("created_at_utc < ?", iso(self.until))
        if self.model:
            add("model = ?", self.model)
        if self.level:
            add("risk_level = ?", self.level)
        if self.above is not None:
            add("risk_score >= ?", self.above)
        if self.text:
            add("instr(lower(request_id), lower(?)) > 0", self.text)
        if self.flag:
            add(_holds("flags", "$"), _json(self.flag), self.flag)
        if self.tag:
            add(_holds("summary", _TAGS_PATH), _json(self.tag), self.tag)
        return " AND ".join(conditions) or "TRUE", values


def _holds(column: str, path: str) -> str:
    """The condition that an array in a column of JSON has a value. The search for its text is fast, and comes first."""
    valid = f"CASE WHEN json_valid({column}) THEN {column} ELSE '[]' END"
    return f"instr({column}, ?) > 0 AND EXISTS (SELECT 1 FROM json_each({valid}, '{path}') WHERE value = ?)"  # noqa: S608 - text of ours; values are bound


def _json(text: str) -> str:
    return pydantic_core.to_json(text).decode()


@dataclass(frozen=True, slots=True)
class Choices:
    """What filters can be set to, as recent requests have it."""

    models: list[str]
    tags: list[str]


class Listing(StoreReader):
    """Lists, counts and values of one file's requests."""

    def page(self, which: Filter, sort: str, *, descending: bool, size: int, number: int) -> list[StoredReport]:
        """One page of requests, without their series.

        Args:
            which: the requests.
            sort: one of :data:`SORTS`. Requests without a score come last.
            descending: the highest, or newest, first.
            size: requests of a page.
            number: of the page, from 0.

        Raises:
            StoreError: the store cannot be read, or it takes too long.
        """
        where, values = which.where()
        order = "DESC" if descending else "ASC"
        query = (
            f"SELECT id FROM reports WHERE {where} ORDER BY {_SORTS[sort]} {order} NULLS LAST, id {order} "  # noqa: S608 - text of ours; values are bound
            "LIMIT ? OFFSET ?"
        )
        with self._timely():
            return self._read(query, [*values, size, size * number], size)

    def how_many(self, which: Filter) -> int:
        """How many requests there are, counted up to one more than :data:`MOST_COUNTED`."""
        where, values = which.where()
        query = f"SELECT count(*) FROM (SELECT 1 FROM reports WHERE {where} LIMIT {MOST_COUNTED + 1})"  # noqa: S608 - text of ours; values are bound
        return int(self._rows_of(query, values)[0][0])

    def choices(self) -> Choices:
        """Models and tags of recent requests, sorted."""
        newest = "(SELECT {} FROM reports ORDER BY created_at_utc DESC LIMIT {})"
        models = f"SELECT DISTINCT model FROM {newest.format('model', _NEWEST)} LIMIT {_MOST_CHOICES}"  # noqa: S608 - text of ours; values are bound
        valid = "CASE WHEN json_valid(summary) THEN summary ELSE '[]' END"
        tags = (
            f"SELECT DISTINCT value FROM {newest.format('summary', _TAGGED)}, json_each({valid}, '{_TAGS_PATH}') "  # noqa: S608 - text of ours; values are bound
            f"WHERE instr(summary, '{_json(names.TAGS)}') > 0 LIMIT {_MOST_CHOICES}"
        )
        return Choices(
            *([str(value) for (value,) in sorted(self._rows_of(query, []), key=str)] for query in (models, tags))
        )

    def values(self, which: Filter, attributes: Sequence[str], most: int) -> list[tuple[Any, ...]]:
        """Of the newest requests, newest first: end, score, level, flags as JSON, output tokens, and attributes.

        Args:
            which: the requests.
            attributes: names in ``summary``. A value that a row does not have is None; any value may be of any type.
            most: requests at most.
        """
        where, values = which.where()
        valid = "CASE WHEN json_valid(summary) THEN summary ELSE '{}' END"
        paths = "".join(f", json_extract({valid}, ?)" for _ in attributes)
        query = (
            f"SELECT created_at_utc, risk_score, risk_level, flags, output_tokens{paths} FROM reports WHERE {where} "  # noqa: S608 - text of ours; values are bound
            "ORDER BY created_at_utc DESC LIMIT ?"
        )
        return self._rows_of(query, [*(f'$."{name}"' for name in attributes), *values, most])

    def _rows_of(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._timely(), self._connection() as (connection, _):
            Limit(connection, SECONDS)
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _timely(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            raise _too_long(error) from None


def _too_long(error: StoreError) -> StoreError:
    if "takes more than" in str(error):
        return StoreError("the store is large, and this takes too long: choose a shorter time")
    return error
