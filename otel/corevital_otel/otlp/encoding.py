"""Spans and log records as OTLP bytes. Each is encoded once, alone, when it is made: its size is exact, and one that
cannot be encoded affects no other.

A span is kept as a serialised ``ScopeSpans`` that holds nothing else: such bytes, one after the other, are again a
``ScopeSpans``, of all their spans (protobuf merges repeated fields). A log record is kept as a ``ScopeLogs`` likewise.
Around spans and around log records the messages have the same fields, so one group serves both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ScopeLogs, SeverityNumber
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, SpanFlags, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags, format_span_id

from corevital_otel import __version__
from corevital_otel import conventions as names
from corevital_otel.report import Series

_SERIES: Final = ("entropy", "surprisal", "margin", "topk_mass")
_LENGTHS: Final = 32
"""Bytes that the lengths of the messages around a group of spans take at most."""
_EVENT_BYTES: Final = 192
"""Of a series event without its values."""

# one double of an ArrayValue: field 1 of 9 bytes, in it field 4 (double_value), little-endian
_DOUBLE: Final = np.dtype([("head", "S3"), ("value", "<f8")])
_HEAD: Final = b"\x0a\x09\x21"


def _tag(number: int) -> bytes:
    return bytes((number << 3 | 2,))  # a field with a length; all of these numbers are below 16


_SPANS: Final = _tag(ScopeSpans.SPANS_FIELD_NUMBER)
_LOG_RECORDS: Final = _tag(ScopeLogs.LOG_RECORDS_FIELD_NUMBER)
_EVENTS: Final = _tag(Span.EVENTS_FIELD_NUMBER)
_EVENT_ATTRIBUTES: Final = _tag(Span.Event.ATTRIBUTES_FIELD_NUMBER)
_KEY: Final = _tag(KeyValue.KEY_FIELD_NUMBER)
_VALUE: Final = _tag(KeyValue.VALUE_FIELD_NUMBER)
_ARRAY: Final = _tag(AnyValue.ARRAY_VALUE_FIELD_NUMBER)


@dataclass(frozen=True, slots=True)
class Group:
    """Resource and instrumentation scope of spans and log records, encoded."""

    resource: bytes
    scope: bytes

    @property
    def size(self) -> int:
        """Bytes it adds to a request."""
        return len(self.resource) + len(self.scope) + _LENGTHS


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """A span or a log record as it goes out: the span's id in hex, its bytes, and the group it is sent in."""

    id: str
    data: bytes
    group: Group

    @property
    def size(self) -> int:
        """Bytes in a request, without the group's."""
        return len(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanDraft:
    """A span before it is encoded, its events encoded already.

    Times are in nanoseconds since the epoch; ``parent`` is invalid or None for a root, ``link`` where there is none.
    """

    name: str
    trace_id: int
    span_id: int
    parent: SpanContext | None
    attributes: Mapping[str, Any]
    start_ns: int
    end_ns: int
    events: Sequence[bytes] = ()
    dropped_events: int = 0
    error: str | None = None
    link: SpanContext | None = None


def group_of(resource: Resource, scope: InstrumentationScope | None = None) -> Group:
    """The group of spans of a resource; by default of our scope."""
    scope = scope or InstrumentationScope("corevital", __version__)
    context = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return _taken_apart(ReadableSpan("", context, resource=resource, instrumentation_scope=scope)).group


def encode_readable(span: ReadableSpan) -> EncodedItem:
    """Encode a span of the SDK's.

    Raises:
        Exception: it cannot be encoded.
    """
    return _taken_apart(span)


def encode(draft: SpanDraft, group: Group, limits: SpanLimits) -> EncodedItem:
    """Encode one of our spans, within the limits of the ``OTEL_*`` variables.

    Raises:
        Exception: it cannot be encoded.
    """
    form = _form_of(draft.attributes, limits)
    span = form.span
    span.name = _text(draft.name)
    span.trace_id = draft.trace_id.to_bytes(16, "big")
    span.span_id = draft.span_id.to_bytes(8, "big")
    span.kind = Span.SPAN_KIND_INTERNAL
    span.start_time_unix_nano = draft.start_ns
    span.end_time_unix_nano = draft.end_ns
    span.flags = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
    parent = draft.parent
    if parent is not None and parent.is_valid:
        span.parent_span_id = parent.span_id.to_bytes(8, "big")
        span.trace_state = _text(",".join(f"{key}={value}" for key, value in parent.trace_state.items()))
        if parent.is_remote:
            span.flags |= SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    else:
        span.parent_span_id, span.trace_state = b"", ""
    del span.links[:]
    link = draft.link
    if link is not None and link.is_valid:
        span.links.add(
            trace_id=link.trace_id.to_bytes(16, "big"),
            span_id=link.span_id.to_bytes(8, "big"),
            flags=link.trace_flags
            | SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
            | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK,
        )
    kept = draft.events
    if limits.max_events is not None and len(kept) > limits.max_events:
        kept = kept[len(kept) - limits.max_events :]  # the SDK drops the oldest
    span.dropped_events_count = draft.dropped_events + len(draft.events) - len(kept)
    if draft.error is not None:
        span.status.code = Status.STATUS_CODE_ERROR
        span.status.message = draft.error
    else:
        span.status.code = Status.STATUS_CODE_UNSET
        span.status.message = ""
    body = span.SerializeToString()
    form.spent += len(body)
    data = _field(_SPANS, body + b"".join([_field(_EVENTS, each) for each in kept]))
    return EncodedItem(format_span_id(draft.span_id), data, group)


class _Form:
    """A span with named attributes whose values are set: most spans have the same names, so reusing it is cheap.

    What a protobuf message has once held is freed with the message only: ``spent`` are the bytes since it was made.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.span = Span()
        for key in keys:
            self.span.attributes.add(key=_text(key))
        self.values = [pair.value for pair in self.span.attributes]
        self.spent = 0


class _Forms(threading.local):
    def __init__(self) -> None:
        self.known: dict[tuple[str, ...], _Form] = {}


_forms: Final = _Forms()
_MOST_FORMS: Final = 32
_FORM_BYTES: Final = 1 << 18


def _form_of(attributes: Mapping[str, Any], limits: SpanLimits) -> _Form:
    """A span with these attributes, until the thread's next call. All other fields are to be set."""
    most, longest = limits.max_span_attributes, limits.max_span_attribute_length
    if longest is None and (most is None or len(attributes) <= most):
        found = _forms.known.get(keys := tuple(attributes))
        if found is None or found.spent > _FORM_BYTES:
            if len(_forms.known) >= _MOST_FORMS:
                _forms.known.clear()
            found = _forms.known[keys] = _Form(keys)
        if _filled(found.values, attributes):
            return found
        del _forms.known[keys]
    form = _Form(())
    form.span.dropped_attributes_count = _fill(form.span.attributes, attributes, most, longest)
    return form


def _filled(values: list[AnyValue], attributes: Mapping[str, Any]) -> bool:
    """Set the values of attributes. False if one of them needs the slow way."""
    try:
        for into, value in zip(values, attributes.values(), strict=True):
            kind = type(value)
            if kind is float:
                into.double_value = value
            elif kind is str:
                into.string_value = value
            elif kind is bool:
                into.bool_value = value
            elif kind is int:
                into.int_value = value
            elif kind is tuple or kind is list:
                array = into.array_value
                del array.values[:]
                array.SetInParent()
                for element in value:
                    array.values.add(string_value=element)
            else:
                return False
    except (UnicodeEncodeError, TypeError):
        return False
    return True


def event(name: str, time_ns: int, attributes: Mapping[str, Any], limits: SpanLimits) -> bytes:
    """An event of a span, encoded."""
    made = Span.Event(name=name, time_unix_nano=time_ns)
    made.dropped_attributes_count = _fill(
        made.attributes, attributes, limits.max_event_attributes, limits.max_attribute_length
    )
    data: bytes = made.SerializeToString()
    return data


def series_events(series: Series, time_ns: int, limits: SpanLimits) -> list[bytes]:
    """The ``corevital.series`` events of a series, at most 256 tokens each, encoded: ``offset`` and four arrays."""
    most = limits.max_event_attributes
    dropped = 0 if most is None else max(1 + len(_SERIES) - most, 0)
    arrays = [(_field(_KEY, name.encode()), _doubles(getattr(series, name))) for name in _SERIES[max(dropped - 1, 0) :]]
    events = []
    for offset in range(0, len(series), names.SERIES_EVENT_TOKENS):
        offsets = {} if dropped else {"offset": offset}
        parts = [event(names.SERIES_EVENT, time_ns, offsets, limits)]
        if dropped:
            parts.append(Span.Event(dropped_attributes_count=dropped).SerializeToString())
        for key, values in arrays:
            array = _field(_ARRAY, values[offset : offset + names.SERIES_EVENT_TOKENS].tobytes())
            parts.append(_field(_EVENT_ATTRIBUTES, key + _field(_VALUE, array)))
        events.append(b"".join(parts))
    return events


def series_size(series: Series) -> int:
    """Bytes of the events of a series, a little more than they are."""
    events = -(-len(series) // names.SERIES_EVENT_TOKENS)
    return len(series) * len(_SERIES) * _DOUBLE.itemsize + events * _EVENT_BYTES


def log_record(
    event_name: str,
    trace_id: int,
    span_id: int,
    time_ns: int,
    attributes: Mapping[str, Any],
    group: Group,
    limits: SpanLimits,
) -> EncodedItem:
    """An event of a sampled span as a log record of severity INFO, encoded.

    Args:
        event_name: the event's.
        trace_id, span_id: of the span.
        time_ns: of the event, nanoseconds since the epoch.
        attributes: the event's.
        group: its resource and scope.
        limits: those for all attributes apply.

    Raises:
        Exception: it cannot be encoded.
    """
    made = LogRecord(
        time_unix_nano=time_ns,
        observed_time_unix_nano=time_ns,
        severity_number=SeverityNumber.SEVERITY_NUMBER_INFO,
        severity_text="INFO",
        trace_id=trace_id.to_bytes(16, "big"),
        span_id=span_id.to_bytes(8, "big"),
        flags=TraceFlags.SAMPLED,
        event_name=event_name,
    )
    made.dropped_attributes_count = _fill(
        made.attributes, attributes, limits.max_attributes, limits.max_attribute_length
    )
    return EncodedItem(format_span_id(span_id), _field(_LOG_RECORDS, made.SerializeToString()), group)


def request(spans: Iterable[EncodedItem]) -> ExportTraceServiceRequest:
    """A request of these spans."""
    made = ExportTraceServiceRequest()
    for group, data in _by_group(spans):
        of_resource = made.resource_spans.add()
        of_resource.ParseFromString(group.resource)
        of_resource.scope_spans.add().ParseFromString(group.scope + data)
    return made


def log_request(records: Iterable[EncodedItem]) -> ExportLogsServiceRequest:
    """A request of these log records."""
    made = ExportLogsServiceRequest()
    for group, data in _by_group(records):
        of_resource = made.resource_logs.add()
        of_resource.ParseFromString(group.resource)
        of_resource.scope_logs.add().ParseFromString(group.scope + data)
    return made


def _by_group(items: Iterable[EncodedItem]) -> Iterator[tuple[Group, bytes]]:
    groups: dict[Group, list[bytes]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item.data)
    for group, data in groups.items():
        yield group, b"".join(data)


def _field(tag: bytes, payload: bytes) -> bytes:
    length = len(payload)
    size = bytearray()
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    size.append(length)
    return b"".join((tag, size, payload))


def _doubles(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = np.empty(len(values), _DOUBLE)
    found["head"] = _HEAD
    found["value"] = np.where(np.isfinite(values), values, names.SERIES_UNKNOWN)
    return found


def _fill(into: Any, attributes: Mapping[str, Any], most: int | None, longest: int | None) -> int:
    """Add attributes. Returns how many were dropped: like the SDK, the first ones where there are too many."""
    items = [(key, value) for key, value in attributes.items() if value is not None]
    dropped = 0 if most is None else max(len(items) - most, 0)
    for key, value in items[dropped:]:
        pair = into.add()
        try:
            pair.key = key
            _set(pair.value, value, longest)
        except UnicodeEncodeError:  # half a surrogate pair
            pair.key = _text(key)
            _set(pair.value, _replaced(value), longest)
    return dropped


def _set(into: AnyValue, value: Any, longest: int | None) -> None:
    if isinstance(value, str):
        into.string_value = value if longest is None else value[:longest]
    elif isinstance(value, bool):
        into.bool_value = value
    elif isinstance(value, float):
        into.double_value = value
    elif isinstance(value, int):
        into.int_value = value
    elif isinstance(value, (list, tuple)):
        into.array_value.SetInParent()
        for element in value:
            _set(into.array_value.values.add(), element, longest)
    else:
        raise TypeError(f"an attribute cannot be of the type {type(value).__name__}")


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()


def _replaced(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else tuple(_replaced(element) for element in value)


def _taken_apart(span: ReadableSpan) -> EncodedItem:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    (of_resource,) = encode_spans([span]).resource_spans
    (of_scope,) = of_resource.scope_spans
    data = ScopeSpans(spans=of_scope.spans).SerializeToString()
    span_id = of_scope.spans[0].span_id.hex()
    del of_scope.spans[:]
    scope = of_scope.SerializeToString()
    del of_resource.scope_spans[:]
    return EncodedItem(span_id, data, Group(of_resource.SerializeToString(), scope))


__all__ = [
    "EncodedItem", "Group", "SpanDraft", "encode", "encode_readable", "event", "group_of", "log_record",
    "log_request", "request", "series_events", "series_size",
]  # fmt: skip
