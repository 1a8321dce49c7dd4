"""A report as a row: what waits for the disk, and the columns it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pydantic_core

from corevital.text import MAX_BYTES, cut
from corevital_otel import conventions as names
from corevital_otel.report import Series
from corevital_otel.spans.record import SpanRecord
from corevital_otel.store import series
from corevital_otel.store.content import Content
from corevital_otel.store.content import pack as pack_content

COLUMNS: Final = (
    "request_id, sequence, created_at_utc, model, finish_reason, prompt_tokens, output_tokens, risk_score, risk_level, "
    "risk_basis, trace_id, span_id, flags, summary, series, parent_span_id, start_ns, end_ns, export, resource_id, "
    "content"
)
WIDTH: Final = COLUMNS.count(",") + 1

_SHORT: Final = 64
"""Characters that never take more than the 256 bytes a text may have."""
_MOST_PARTS: Final = 64
"""Texts of one attribute that are kept."""
_ROW_BYTES: Final = 4 * 1024
"""Memory a waiting row takes without its series and texts: measured."""


class Row:
    """One report on its way to the disk, with what its row will hold: no token ids.

    Args:
        record: its span.
        content: the text of its tokens, where that is to be stored.

    Attributes:
        span_id: its span's id in hex.
        export: the span's fate: None (not to be exported), ``queued``, ``sent`` or ``undelivered``.
        writing: it is being written.
        size: memory it takes, bytes, about.
    """

    __slots__ = (
        "_attributes",
        "_columns",
        "_content",
        "_flags",
        "_series",
        "export",
        "size",
        "span_id",
        "trace_id",
        "writing",
    )

    def __init__(self, record: SpanRecord, content: Content | None = None) -> None:
        found, ids = record.attributes.get, record.ids
        self._columns = (
            record.request_id,
            found(names.SEQUENCE),
            moment(record.end_ns),
            found(names.REQUEST_MODEL),
            cut(record.attributes[names.RESPONSE_FINISH_REASONS][0]),
            found(names.USAGE_INPUT_TOKENS),
            found(names.USAGE_OUTPUT_TOKENS),
            found(names.RISK_SCORE),
            found(names.RISK_LEVEL),
            found(names.RISK_BASIS),
            ids.trace_id,
            ids.span_id,
            ids.parent_id,
            record.start_ns,
            max(record.end_ns, record.start_ns),
        )
        self._flags = record.flags
        self._attributes, texts = _kept(record.attributes)
        self._series = record.series
        self._content = content
        self.span_id, self.trace_id = ids.span_id, ids.trace_id
        self.export = "queued" if ids.exported else None
        self.writing = False
        self.size = _ROW_BYTES + texts + _series_bytes(record.series)
        self.size += 0 if content is None else content.size

    @property
    def request_id(self) -> str:
        """The id that the client sees, cut to what is kept."""
        return str(self._columns[0])

    def encode(self, resource_id: int | None) -> tuple[Any, ...]:
        """The values of :data:`COLUMNS`.

        Raises:
            ValueError, TypeError: JSON cannot hold one.
        """
        *first, parent_id, start_ns, end_ns = self._columns
        packed = None if self._series is None else series.pack(self._series)
        text = None if self._content is None else pack_content(self._content)
        flags, summary = to_json(self._flags), to_json(self._attributes)
        return (*first, flags, summary, packed, parent_id, start_ns, end_ns, self.export, resource_id, text)


def to_json(value: Mapping[str, Any] | Sequence[str]) -> str:
    """Attributes as JSON. Half a surrogate pair, which UTF-8 cannot hold, becomes ``?``.

    Raises:
        ValueError, TypeError: JSON cannot hold it.
    """
    try:
        return pydantic_core.to_json(value).decode()
    except (UnicodeEncodeError, pydantic_core.PydanticSerializationError):
        return pydantic_core.to_json(_clean(value)).decode()


def moment(end_ns: int) -> str:
    """Nanoseconds since the epoch as UTC in ISO 8601 with milliseconds, which sorts as text.

    Raises:
        ValueError, OverflowError, OSError: no date has that number.
    """
    return datetime.fromtimestamp(end_ns / 1e9, UTC).isoformat(timespec="milliseconds")[:23] + "Z"


def iso(when: datetime) -> str:
    """UTC in ISO 8601 with milliseconds, which sorts as text."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds")[:23] + "Z"


def _kept(attributes: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """The attributes with no text longer than is kept, and the bytes of their texts, about."""
    texts = 0
    changed: dict[str, Any] = {}
    for name, value in attributes.items():
        kind = type(value)
        if kind is str:
            if len(value) > _SHORT:
                changed[name] = cut(value)
            texts += min(len(value), MAX_BYTES)
        elif kind is tuple or kind is list:
            if len(value) > _MOST_PARTS or any(type(part) is not str or len(part) > _SHORT for part in value):
                changed[name] = tuple(cut(str(part)) for part in value[:_MOST_PARTS])
            kept = changed.get(name, value)
            texts += 64 * len(kept) + sum(map(len, kept))
    return ({**attributes, **changed} if changed else attributes), texts


def _series_bytes(found: Series | None) -> int:
    if found is None:
        return 0
    arrays = (found.entropy, found.surprisal, found.margin, found.topk_mass)
    return sum(array.nbytes for array in arrays)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_clean(name): _clean(its) for name, its in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(part) for part in value]
    return value
