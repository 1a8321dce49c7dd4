"""What goes into which instrument. All calls come from the hub's thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from corevital.guard import faults, guarded, swallow
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.metrics.instruments import FINISH_REASONS, INSTRUMENTS, OTHER, Output
from corevital_otel.report import RequestReport
from corevital_otel.spans import SpanIds

_MODELS: Final = 64
"""Model names that get series of their own; adapters can be loaded under ever new names. Later ones are ``other``."""

_NO_SPAN: Final = Context()
_UNANSWERED: Final = ("abort", "error")
KNOWN_LOSSES: Final = (
    ("record", "queue_full"),
    ("record", "missing"),
    ("span", "queue_full"),
    ("span", "export_failed"),
    ("report", "store_full"),
)
"""Losses that are there as zero from the start, so that the first one is an increase that an alert can see."""
_LEVELS: Final = ("low", "medium", "high")
_SIGNALS: Final = ("traces", "metrics")


class Recorder:
    """Puts measurements into every output.

    Args:
        outputs: where they go.
        counters: our own losses and deliveries, which are passed on at each refresh.
        models: names of models that are served from the start.
    """

    def __init__(self, outputs: Sequence[Output], counters: Counters, models: Sequence[str] = ()) -> None:
        self._outputs = outputs
        self._counters = counters
        self._models: set[str] = set()
        self._passed_on: dict[Any, float] = {}  # what a count was when it was passed on last
        for what, why in KNOWN_LOSSES:
            counters.add(names.DROPPED, 0, what=what, why=why)
        for signal in _SIGNALS:
            counters.add(names.EXPORTED, 0, signal=signal)
        for model in models:
            self._model(model)

    @guarded("a report's metrics")
    def report(self, report: RequestReport, ids: SpanIds | None) -> None:
        """A sequence has been reported, under the span with these ids; None where it has none that anybody can find."""
        admitted, outcome, features, risk = report.admitted, report.outcome, report.features, report.risk
        context = _NO_SPAN if ids is None else _span_context(ids, report.parent)
        model = {names.REQUEST_MODEL: self._model(admitted.model)}
        reason = outcome.reason if outcome.reason in FINISH_REASONS else OTHER
        self._put(names.REQUESTS, 1, {**model, "finish_reason": reason, "risk_level": risk.level}, context)
        if features.tokens:
            self._put(names.TOKENS, features.tokens, model, context)
        for flag in report.health.flags:
            if flag in names.FLAGS:
                self._put(names.HEALTH_FLAGS, 1, {**model, "flag": flag}, context)
            else:
                self._put(names.HEALTH_WARNINGS, 1, {**model, "warning": flag}, context)
        if risk.score is not None:
            self._put(names.RISK_SCORE, risk.score, {**model, "basis": risk.basis}, context)
        if features.entropy_mean is not None:
            self._put(names.ENTROPY_METRIC, features.entropy_mean, model, context)
        if features.surprisal_mean is not None:
            self._put(names.SURPRISAL_METRIC, features.surprisal_mean, model, context)
        self._latencies(report, model, context)
        lag_s = (time.time_ns() - outcome.end_ns) / 1e9
        self._put(names.TELEMETRY_LAG, max(lag_s, 0.0), {}, context)  # the wall clock may have been set back

    def _latencies(self, report: RequestReport, model: Mapping[str, str], context: Context) -> None:
        admitted, outcome = report.admitted, report.outcome
        labels = {**model, names.OPERATION_NAME: admitted.operation, names.PROVIDER_NAME: admitted.engine}
        if outcome.reason == "error":
            labels[names.ERROR_TYPE] = "engine_error"
        duration_s = max(outcome.end_ns - admitted.arrival_ns, 0) / 1e9
        self._put(names.SERVER_REQUEST_DURATION, duration_s, labels, context)
        if outcome.first_chunk_s is None or outcome.reason in _UNANSWERED:
            return
        self._put(names.SERVER_TIME_TO_FIRST_TOKEN, max(outcome.first_chunk_s, 0.0), labels, context)
        if len(outcome.token_ids) > 1:
            rest_s = max(duration_s - outcome.first_chunk_s, 0.0) / (len(outcome.token_ids) - 1)
            self._put(names.SERVER_TIME_PER_OUTPUT_TOKEN, rest_s, labels, context)

    @guarded("the metrics' refresh")
    def refresh(
        self,
        running: Mapping[str, int],
        looping: Mapping[str, int],
        waiting: Mapping[str, int],
        alarmed: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Pass on what is so now, and what was counted since the last time.

        Args:
            running, looping, alarmed: sequences by model; a model that is missing has none.
            waiting: items by queue.
        """
        gauges = {
            names.SEQUENCES_RUNNING: running,
            names.SEQUENCES_LOOPING: looping,
            names.SEQUENCES_ALARMED: alarmed,
        }
        for name, found in gauges.items():
            by_label: dict[str, int] = {}
            for model, count in found.items():
                label = self._model(model)
                by_label[label] = by_label.get(label, 0) + count
            for label in tuple(self._models):
                self._put(name, by_label.get(label, 0), {names.REQUEST_MODEL: label}, _NO_SPAN)
        for queue, count in waiting.items():
            self._put(names.TELEMETRY_QUEUE, count, {"what": queue}, _NO_SPAN)
        self._increase(names.TELEMETRY_CPU_TIME, (), time.thread_time())
        self._increase(names.TELEMETRY_FAULTS, (), faults())
        for (name, labels), count in self._counters.snapshot().items():
            self._increase(name, labels, count)

    def close(self, timeout_s: float) -> None:
        """Deliver what there is, within this bound."""
        for output in self._outputs:
            guarded("the metrics' end")(output.close)(timeout_s)

    def _increase(self, name: str, labels: tuple[tuple[str, str], ...], total: float) -> None:
        """Add what a count has gained since the last time; at first even nothing, so that it is there."""
        before = self._passed_on.get((name, labels))
        if before is None or total > before:
            self._passed_on[name, labels] = total
            self._put(name, total - (before or 0), dict(labels), _NO_SPAN)

    def _put(self, name: str, value: float, labels: Mapping[str, str], context: Context) -> None:
        instrument = INSTRUMENTS[name]
        for output in self._outputs:
            try:
                output.put(instrument, value, labels, context)
            except Exception:
                swallow("a metric's output")

    def _model(self, model: str) -> str:
        """The label's value for a model."""
        if model in self._models:
            return model
        label = model if len(self._models) < _MODELS else OTHER
        if label not in self._models:
            self._models.add(label)
            for flag in names.FLAGS:
                self._put(names.HEALTH_FLAGS, 0, {names.REQUEST_MODEL: label, "flag": flag}, _NO_SPAN)
            for flag in names.CONDITIONS:
                self._put(names.HEALTH_WARNINGS, 0, {names.REQUEST_MODEL: label, "warning": flag}, _NO_SPAN)
            for level in _LEVELS:  # so that a share of high risk is 0 where there is none, not nothing
                ended = {names.REQUEST_MODEL: label, "finish_reason": "stop", "risk_level": level}
                self._put(names.REQUESTS, 0, ended, _NO_SPAN)
            self._put(names.TOKENS, 0, {names.REQUEST_MODEL: label}, _NO_SPAN)
        return label


def _span_context(ids: SpanIds, parent: Context | None) -> Context:
    """A context with the report's span, for exemplars; sampled unless the caller said otherwise."""
    caller = trace.get_current_span(parent).get_span_context() if parent is not None else None
    flags = caller.trace_flags if caller is not None and caller.is_valid else TraceFlags(TraceFlags.SAMPLED)
    span = SpanContext(int(ids.trace_id, 16), int(ids.span_id, 16), is_remote=False, trace_flags=flags)
    return trace.set_span_in_context(NonRecordingSpan(span), Context())
