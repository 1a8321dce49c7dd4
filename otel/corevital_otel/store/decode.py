"""Rows as checked values: each column has its type and a bound, or the row counts as damaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from corevital.text import printable
from corevital_otel import conventions as names
from corevital_otel.report import Series
from corevital_otel.store import content, series
from corevital_otel.store.content import Content

MAX_SUMMARY: Final = 2**20
"""Bytes of a row's attributes that are read at most: a row has about 2 KB."""

_INT: Final = 2**63
_HEALTH: Final = tuple(names.HEALTH + flag for flag in (*names.FLAGS, *names.CONDITIONS) if flag != "alarm_raised")
_T = TypeVar("_T")

_TEXTS: Final = {
    names.OPERATION_NAME, names.PROVIDER_NAME, names.REQUEST_MODEL, names.RESPONSE_MODEL, names.RESPONSE_ID,
    names.OUTPUT_TYPE, names.ERROR_TYPE, names.RISK_LEVEL, names.RISK_BASIS, names.ALARM_SIGNAL, names.LOGITS_STAGE,
    names.ENGINE, names.ENGINE_VERSION, names.RUNNER, names.VERSION, names.CAPTURE, names.PROMPT_HASH,
    names.RISK_SEGMENT,
}  # fmt: skip
_LISTS: Final = {names.RESPONSE_FINISH_REASONS, names.RISK_FACTORS, names.TAGS}
_FLAGS: Final = {*_HEALTH, names.ALARM_RAISED, names.REQUEST_STREAM, names.INCOMPLETE}
_NUMBERS: Final = {
    *names.FEATURES.values(), *names.ASSESSED.values(), names.TOKENS_FORCED, *names.SEGMENT_NUMBERS,
    names.USAGE_INPUT_TOKENS, names.USAGE_OUTPUT_TOKENS, names.USAGE_CACHE_READ_INPUT_TOKENS,
    names.REQUEST_TEMPERATURE, names.REQUEST_TOP_P, names.REQUEST_TOP_K, names.REQUEST_MAX_TOKENS, names.REQUEST_SEED,
    names.REQUEST_CHOICE_COUNT, names.REQUEST_FREQUENCY_PENALTY, names.REQUEST_PRESENCE_PENALTY,
    names.RESPONSE_TIME_TO_FIRST_CHUNK, names.RISK_SCORE, names.ALARM_ONSET, names.LOOP_ONSET, names.LOOP_PERIOD,
    names.SURPRISAL_ESTIMATED, names.SEQUENCE,
}  # fmt: skip
_COUNTS: Final = {
    names.HIGH_ENTROPY_STEPS, names.HIGH_ENTROPY_RUN, names.ALARM_ONSET, names.LOOP_ONSET, names.LOOP_PERIOD,
    names.SEQUENCE, names.USAGE_INPUT_TOKENS, names.USAGE_OUTPUT_TOKENS,
}  # fmt: skip
"""Numbers that are used as counts or places."""

_Text = Annotated[str, Field(max_length=4096)]
_Count = Annotated[int, Field(ge=0, lt=_INT)]


class Columns(BaseModel):
    """The plain columns of a row."""

    model_config = ConfigDict(strict=True, frozen=True)

    request_id: _Text
    sequence: _Count
    created_at_utc: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$")]
    model: _Text
    finish_reason: _Text
    prompt_tokens: _Count
    output_tokens: _Count
    risk_score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None
    risk_level: _Text
    risk_basis: _Text
    trace_id: _Text
    span_id: _Text


class SpanColumns(BaseModel):
    """The columns that a span needs: ids of OTLP's lengths, not zero, and times that OTLP can hold."""

    model_config = ConfigDict(strict=True, frozen=True)

    model: _Text
    finish_reason: _Text
    trace_id: Annotated[str, Field(pattern=r"^[0-9a-f]*[1-9a-f][0-9a-f]*$", min_length=32, max_length=32)]
    span_id: Annotated[str, Field(pattern=r"^[0-9a-f]*[1-9a-f][0-9a-f]*$", min_length=16, max_length=16)]
    parent_span_id: Annotated[str, Field(pattern=r"^[0-9a-f]*[1-9a-f][0-9a-f]*$", min_length=16, max_length=16)] | None
    start_ns: _Count
    end_ns: _Count


class Damage(ValueError):
    """A row that no server can have written. Its text names the column and the cause, in one line."""


def plain(kind: type[BaseModel], values: Sequence[Any]) -> dict[str, Any]:
    """The plain columns, in the order of a model's fields.

    Raises:
        Damage: one is not of its type.
    """
    found = dict(zip(kind.model_fields, values, strict=True))
    try:
        kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise Damage(f"{'.'.join(map(str, first['loc'][:1]))}: {printable(first['msg'], 100)}") from None
    return found


def flags(text: object) -> list[str]:
    """The column ``flags``.

    Raises:
        Damage: it is not an array of texts.
    """
    found = _json(text, "flags")
    if not isinstance(found, list) or len(found) > 64 or not all(isinstance(flag, str) for flag in found):
        raise Damage("flags: not an array of names")
    return found


def attributes(text: object, column: str = "summary") -> dict[str, Any]:
    """The column ``summary``, or another one with attributes.

    Raises:
        Damage: it is not an object, or an attribute has a wrong type.
    """
    found = _json(text, column)
    if not isinstance(found, dict):
        raise Damage(f"{column}: not an object")
    for name, value in found.items():
        if not _fits(name, value):
            raise Damage(f"{column}: {printable(name, 80)} has a wrong value")
    return found


def unpacked(data: object) -> Series | None:
    """The column ``series``.

    Raises:
        Damage: it is not a series.
    """
    return _packed("series", data, series.unpack)


def text(data: object) -> Content | None:
    """The column ``content``.

    Raises:
        Damage: it is not a text's tokens.
    """
    return _packed("content", data, content.unpack)


def _packed(column: str, data: object, unpack: Callable[[bytes], _T]) -> _T | None:
    if data is None:
        return None
    if not isinstance(data, bytes):
        raise Damage(f"{column}: not bytes")
    try:
        return unpack(data)
    except ValueError as error:
        raise Damage(f"{column}: {error}") from None


def signals(values: Sequence[object], count: int) -> tuple[str, str, list[float]]:
    """A row of ``baseline``: model, bucket, and signals, NaN where not known.

    Raises:
        Damage: it is something else.
    """
    model, bucket, text = values
    found = _json(text, "signals")
    if not (isinstance(model, str) and isinstance(bucket, str)):
        raise Damage("model: not text")
    if not isinstance(found, list) or len(found) != count or not all(v is None or _number(v) for v in found):
        raise Damage("signals: not as many numbers as there are signals")
    return model, bucket, [math.nan if value is None else float(value) for value in found]


def _json(text: object, column: str) -> Any:
    if not isinstance(text, str):
        raise Damage(f"{column}: not text")
    if len(text) > MAX_SUMMARY:
        raise Damage(f"{column}: more than {MAX_SUMMARY} bytes")
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Damage(f"{column}: {printable(error, 100)}") from None


def _fits(name: str, value: Any) -> bool:
    if name in _TEXTS:
        return isinstance(value, str)
    if name in _LISTS:
        return _is_texts(value)
    if name in _FLAGS:
        return isinstance(value, bool)
    if name in _NUMBERS:
        return _number(value) and (name not in _COUNTS or isinstance(value, int))
    return isinstance(value, (str, bool)) or _number(value) or _is_values(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _is_values(value: Any) -> bool:
    """An array as OTLP has them: of one kind."""
    if not isinstance(value, list):
        return False
    return _is_texts(value) or all(isinstance(part, bool) for part in value) or all(map(_number, value))


def _number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return -_INT <= value < _INT
    return isinstance(value, float) and math.isfinite(value)
