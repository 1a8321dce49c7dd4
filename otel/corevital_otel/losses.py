"""All data of ours that can be lost, and why. docs/understand/metrics.md explains each one to users."""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class Loss(Enum):
    """What was lost, and why: the labels of ``corevital.telemetry.dropped``.

    :meth:`corevital_otel.counters.Counters.count_loss` is the only way to count one.
    """

    RECORD_QUEUE_FULL = "record", "queue_full"
    RECORD_MISSING = "record", "missing"
    RECORD_LATE = "record", "late"
    RECORD_INDEX_OUT_OF_RANGE = "record", "index_out_of_range"
    RECORD_UNKNOWN_SEQUENCE = "record", "unknown_sequence"
    FRAME_UNAUTHENTICATED = "frame", "unauthenticated"
    FRAME_MALFORMED = "frame", "malformed"
    FRAME_VERSION = "frame", "version"
    FRAME_FAULT = "frame", "fault"
    FRAME_UNREACHABLE = "frame", "unreachable"
    EVENT_FAULT = "event", "fault"
    EVENT_MALFORMED = "event", "malformed"
    EVENT_VERSION = "event", "version"
    FINISH_ALREADY_REPORTED = "finish", "already_reported"
    FINISH_UNKNOWN_SEQUENCE = "finish", "unknown_sequence"
    FINISH_DUPLICATE = "finish", "duplicate"
    SEQUENCE_DUPLICATE_KEY = "sequence", "duplicate_key"
    SEQUENCE_QUEUE_FULL = "sequence", "queue_full"
    SEQUENCE_TOO_MANY_LIVE = "sequence", "too_many_live"
    SEQUENCE_HUB_GONE = "sequence", "hub_gone"
    SEQUENCE_OTHER_TOKENS = "sequence", "other_tokens"
    CONTENT_TOO_MUCH = "content", "too_much"
    CONTENT_NO_TOKENIZER = "content", "no_tokenizer"
    CONTENT_BUSY = "content", "busy"
    CONTENT_FAULT = "content", "fault"
    REPORT_FAULT = "report", "fault"
    REPORT_STORE_FULL = "report", "store_full"
    REPORT_STORE_UNWRITABLE = "report", "store_unwritable"
    REPORT_STORE_ROW = "report", "store_row"
    REPORT_STORE_REFUSED = "report", "store_refused"
    FATE_STORE_FULL = "fate", "store_full"
    FATE_STORE_UNWRITABLE = "fate", "store_unwritable"
    RISK_FAULT = "risk", "fault"
    SERIES_TOO_LONG = "series", "too_long"
    SERIES_QUEUE_FULL = "series", "queue_full"
    SERIES_TOO_LARGE = "series", "too_large"
    SPAN_QUEUE_FULL = "span", "queue_full"
    SPAN_UNENCODABLE = "span", "unencodable"
    SPAN_TOO_LARGE = "span", "too_large"
    SPAN_EXPORT_FAILED = "span", "export_failed"
    SPAN_REJECTED = "span", "rejected"
    SPAN_SHUTDOWN = "span", "shutdown"
    SPAN_HUB_GONE = "span", "hub_gone"
    SPAN_TOO_OLD = "span", "too_old"
    SPAN_BACKLOG_FULL = "span", "backlog_full"
    SPAN_NOT_STORED = "span", "not_stored"
    LOG_QUEUE_FULL = "log", "queue_full"
    LOG_UNENCODABLE = "log", "unencodable"
    LOG_EXPORT_FAILED = "log", "export_failed"
    LOG_REJECTED = "log", "rejected"
    LOG_SHUTDOWN = "log", "shutdown"
    SCORE_QUEUE_FULL = "score", "queue_full"
    SCORE_EXPORT_FAILED = "score", "export_failed"
    SCORE_REJECTED = "score", "rejected"
    SCORE_SHUTDOWN = "score", "shutdown"
    METRIC_EXPORT_FAILED = "metric", "export_failed"
    VERDICT_LATE = "verdict", "late"
    METRIC_REJECTED = "metric", "rejected"

    @property
    def labels(self) -> dict[str, str]:
        """``what`` and ``why``."""
        what, why = self.value
        return {"what": what, "why": why}


class LossCounter(Protocol):
    """What measuring needs of :class:`corevital_otel.counters.Counters`."""

    def count_loss(self, loss: Loss, amount: int = 1) -> None:
        """Count something that was lost; ``amount`` 0 counts nothing."""
