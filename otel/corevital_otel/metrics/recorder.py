"""Which measurement goes into which instrument. All calls come from the hub's thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from corevital.frames.lifecycle import INTERNAL_KINDS
from corevital.guard import faults, guarded, swallow
from corevital.supported import STOP_ON, stopped_by
from corevital_otel import __version__
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.metrics.instruments import FINISH_REASONS, INSTRUMENTS, OTHER, Output
from corevital_otel.report import RequestReport
from corevital_otel.spans.record import SpanRecord

_MODELS: Final = 64
"""Model names with their own label value; later ones are ``other``. Adapters can be loaded under ever new names."""

_NO_SPAN: Final = Context()
_UNANSWERED: Final = ("abort", "error")
_LEVELS: Final = ("low", "medium", "high")
_SIGNALS: Final = ("traces", "metrics", "logs")


class Recorder:
    """Puts measurements into every output.

    Args:
        outputs: where they go.
        counters: losses and deliveries, passed on at each refresh.
        models: names of models that are served from the start.
    """

    def __init__(self, outputs: Sequence[Output], counters: Counters, models: Sequence[str] = ()) -> None:
        self._outputs = outputs
        self._counters = counters
        self._models: set[str] = set()
        self._engines: set[tuple[str, str]] = set()  # engine and its version
        self._passed_on: dict[Any, float] = {}  # each count when it was last passed on
        self._owed: dict[str, int] = {}  # tokens counted too many, by model, as negative numbers
        # Everything exists as zero from the start, so that an alert sees the first one as an increase.
        for loss in Loss:
            counters.add(names.DROPPED, 0, **loss.labels)
        for signal in _SIGNALS:
            counters.add(names.EXPORTED, 0, signal=signal)
        for kind in INTERNAL_KINDS:
            counters.add(names.REQUESTS_INTERNAL, 0, kind=kind)
        counters.add(names.SEQUENCES_UNOBSERVED, 0)
        for model in models:
            self._start(self._model(model))

    @guarded("a report's metrics")
    def report(self, report: RequestReport, span: SpanRecord | None) -> None:
        """Measure a report. ``span`` is what its exemplars name; None where it has none that anyone can find."""
        admitted, outcome, features, risk = report.admitted, report.outcome, report.features, report.risk
        context = _NO_SPAN if span is None else _span_context(span)
        model = {names.REQUEST_MODEL: self._model(admitted.model)}
        reason = outcome.reason if outcome.reason in FINISH_REASONS else OTHER
        self._put(names.REQUESTS, 1, _ended(model[names.REQUEST_MODEL], reason, risk.level), context)
        if features.tokens > report.counted:
            self._put(names.TOKENS, features.tokens - report.counted, model, context)
        for flag in report.health.flags:
            if flag in names.FLAGS:
                self._put(names.HEALTH_FLAGS, 1, {**model, "flag": flag}, context)
            else:
                self._put(names.HEALTH_WARNINGS, 1, {**model, "warning": flag}, context)
        if report.health.fault_flags and reason != "error":
            self._put(names.REQUESTS_FAULTY, 1, {**model, "flag": report.health.fault_flags[0]}, context)
        stopped = stopped_by(outcome.core.stop_reason) if reason == "stop" else None
        if stopped is not None:
            self._put(names.REQUESTS_STOPPED, 1, {**model, "reason": stopped}, context)
            saved = (admitted.max_tokens or 0) - len(outcome.token_ids)
            if saved > 0:
                self._put(names.TOKENS_SAVED, saved, model, context)
        if risk.score is not None:
            self._put(names.RISK_SCORE, risk.score, {**model, "basis": risk.basis}, context)
        if features.entropy_mean is not None:
            self._put(names.ENTROPY_METRIC, features.entropy_mean, model, context)
        if features.surprisal_mean is not None:
            self._put(names.SURPRISAL_METRIC, features.surprisal_mean, model, context)
        if features.repetition_share is not None:
            self._put(names.REPETITION_SHARE, features.repetition_share, model, context)
        self._latencies(report, model, context)
        self._phases(report, model, context)
        if (engine := (admitted.engine, admitted.engine_version)) not in self._engines:
            self._engines.add(engine)
            build = {"version": __version__, "engine": engine[0], "engine_version": engine[1]}
            self._put(names.BUILD_INFO, 1, build, _NO_SPAN)
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

    def _phases(self, report: RequestReport, model: Mapping[str, str], context: Context) -> None:
        """What the engine's core says of it; what is not known is not measured."""
        outcome, core = report.outcome, report.outcome.core
        answered = outcome.reason not in _UNANSWERED and len(outcome.token_ids) > 1
        for name, seconds in (
            (names.REQUEST_QUEUE, core.queue_s),
            (names.REQUEST_PREFILL, core.prefill_s),
            (names.REQUEST_DECODE, core.decode_s if answered else None),
        ):
            if seconds is not None and seconds >= 0:
                self._put(name, seconds, model, context)
        for name, count in (
            (names.PREEMPTIONS, core.preemptions),
            (names.REASONING_TOKENS, outcome.reasoning_tokens),
            (names.DRAFT_ACCEPTED_TOKENS, core.accepted_draft_tokens),
        ):
            if count:
                self._put(name, count, model, context)

    @guarded("the metrics' refresh")
    def refresh(
        self,
        running: Mapping[str, int],
        looping: Mapping[str, int],
        waiting: Mapping[str, int],
        alarmed: Mapping[str, int] = MappingProxyType({}),
        tokens: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Pass on the current state, and what was counted since the last refresh.

        Args:
            running, looping, alarmed: sequences by model; a model that is missing has none.
            waiting: items by queue.
            tokens: of running sequences, observed since the last refresh, by model. A negative count takes back what
                another process will report.
        """
        for model, count in tokens.items():
            label = self._model(model)
            self._owed[label] = self._owed.get(label, 0) + count
            if self._owed[label] > 0:
                self._put(names.TOKENS, self._owed.pop(label), {names.REQUEST_MODEL: label}, _NO_SPAN)
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
        """Add what a count has gained since the last refresh; a new count is passed on even at 0, so that it exists."""
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
            for flag in (flag for flag in names.CONDITIONS if flag != "template_detected"):  # no alert needs its first
                self._put(names.HEALTH_WARNINGS, 0, {names.REQUEST_MODEL: label, "warning": flag}, _NO_SPAN)
            for level in _LEVELS:  # so that a share of high risk is 0 and not absent
                self._put(names.REQUESTS, 0, _ended(label, "stop", level), _NO_SPAN)
            for counter in (names.TOKENS, names.PREEMPTIONS, names.REASONING_TOKENS, names.DRAFT_ACCEPTED_TOKENS):
                self._put(counter, 0, {names.REQUEST_MODEL: label}, _NO_SPAN)
        return label

    def _start(self, label: str) -> None:
        """What a served model has besides as zero: for a later one the first value would be as late."""
        for flag in names.FAULT_FLAGS:
            self._put(names.REQUESTS_FAULTY, 0, {names.REQUEST_MODEL: label, "flag": flag}, _NO_SPAN)
        for why in STOP_ON:
            self._put(names.REQUESTS_STOPPED, 0, {names.REQUEST_MODEL: label, "reason": why}, _NO_SPAN)
        self._put(names.TOKENS_SAVED, 0, {names.REQUEST_MODEL: label}, _NO_SPAN)
        for reason, level in product((*FINISH_REASONS, OTHER), (*_LEVELS, "unknown")):
            self._put(names.REQUESTS, 0, _ended(label, reason, level), _NO_SPAN)


def _ended(label: str, reason: str, level: str) -> dict[str, str]:
    return {names.REQUEST_MODEL: label, "finish_reason": reason, "risk_level": level}


def _span_context(record: SpanRecord) -> Context:
    """A context with the report's span, for exemplars; sampled unless the caller's is not."""
    flags = record.parent.trace_flags if record.parent is not None else TraceFlags(TraceFlags.SAMPLED)
    span = SpanContext(int(record.ids.trace_id, 16), int(record.ids.span_id, 16), is_remote=False, trace_flags=flags)
    return trace.set_span_in_context(NonRecordingSpan(span), Context())
