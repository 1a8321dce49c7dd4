"""What a report becomes: a span, the log record of its evaluation, a row, and metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from corevital.guard import guarded, swallow
from corevital.log import about, warn_once
from corevital.text import cut, printable
from corevital_otel.counters import Counters
from corevital_otel.errors import SettingsError
from corevital_otel.losses import Loss
from corevital_otel.metrics import otlp
from corevital_otel.metrics.exposition import Exposition
from corevital_otel.metrics.instruments import Output
from corevital_otel.metrics.recorder import Recorder
from corevital_otel.otlp.destination import Destination, destination, logs_destination
from corevital_otel.otlp.kinds import KEPT_SPANS, SPANS
from corevital_otel.otlp.resource import Facts
from corevital_otel.otlp.variables import endpoint_of
from corevital_otel.report import RequestReport
from corevital_otel.sampling import Sampler, is_kept
from corevital_otel.service.redelivery import Redelivery
from corevital_otel.settings import Settings
from corevital_otel.spans import backends, langfuse_scores
from corevital_otel.spans.emitter import SpanEmitter
from corevital_otel.spans.evaluations import EvaluationLogs
from corevital_otel.spans.http_context import follow_requests
from corevital_otel.spans.http_server import HttpSpans
from corevital_otel.spans.langfuse_scores import LangfuseScores
from corevital_otel.spans.posted import PostedSpan
from corevital_otel.spans.record import SpanRecord
from corevital_otel.store.content import Content
from corevital_otel.store.writer import StoreWriter
from corevital_otel.verdicts.answer import Answer


class Outputs:
    """Takes reports in, on one thread. Separate threads send spans and write rows.

    Args:
        settings: the server's settings.
        counters: counts losses and deliveries.
        sampler: that of the requests, for the HTTP spans around them.
        model: the name that the engine's model is served under; "" where it is unknown.
        engine: facts of the engine, for the resource of its spans and metrics.
        where: where spans go; by default what the ``OTEL_*`` variables say.
        engine_traces: the engine's own tracing is on.
    """

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        sampler: Sampler,
        model: str = "",
        *,
        engine: Facts | None = None,
        where: Destination | None = None,
        engine_traces: bool = False,
    ) -> None:
        self._settings = settings
        self._counters = counters
        where = where or destination()
        self._spans = SpanEmitter(
            counters,
            where,
            backends=backends.wanted(settings.otel_profile, where),
            engine=engine and {name: cut(fact) if isinstance(fact, str) else fact for name, fact in engine.items()},
            fate=self._note_fate,
            unfit=lambda span_id: self.store.settle([span_id], False, unfit=True),
            kind=KEPT_SPANS if settings.resends else SPANS,
        )
        self.store = StoreWriter(
            settings.db,
            settings.db_retention_days,
            settings.db_max_mb,
            counters,
            self._spans.resource.attributes,
            keeps_spans=settings.resends,
        )
        self._redelivery: Redelivery | None = None
        if settings.resends and where is not None and self._spans.processor is not None:
            self._redelivery = Redelivery(settings, where, self.store, counters)
        self._logs = self._evaluation_logs()
        self._scores = self._langfuse_scores(where)
        self._http = HttpSpans(self._spans, sampler, propagate_inwards=engine_traces)
        self.metrics = Recorder(list(self._measured()), counters, [cut(model)] if model else [])

    def _evaluation_logs(self) -> EvaluationLogs | None:
        """None where spans or they go nowhere, or a variable is wrong: spans have the same evaluations."""
        if self._spans.processor is None:
            return None
        try:
            where = logs_destination()
            return None if where is None else EvaluationLogs(self._counters, self._spans.resource, where)
        except SettingsError as error:
            warn_once("logs", "%s; evaluations are on spans only", error)
            return None

    def _langfuse_scores(self, where: Destination | None) -> LangfuseScores | None:
        """None where no spans go to Langfuse, it has no keys, or a variable is wrong."""
        if self._spans.processor is None or "langfuse" not in backends.wanted(self._settings.otel_profile, where):
            return None
        try:
            account = langfuse_scores.account(os.environ, where)
            return None if account is None else LangfuseScores(self._counters, account)
        except SettingsError as error:
            warn_once("scores", "%s; no scores are sent", error)
            return None

    def _measured(self) -> Iterator[Output]:
        if (exposition := guarded("the start of /metrics")(Exposition)()) is not None:
            yield exposition
        if endpoint_of(os.environ, "METRICS") is not None:
            try:
                # one resource for spans and metrics: backends join the two by it
                yield otlp.Otlp(self._spans.resource, self._counters)
            except SettingsError as error:
                warn_once("metrics", "%s; metrics are on /metrics only", error)

    def _note_fate(self, span_ids: Sequence[str], delivered: bool) -> int:
        return self.store.settle(span_ids, delivered)

    def start(self, begin: Callable[[Any], object] | None = None) -> None:
        """Follow HTTP requests, for their spans, the callers of their sequences, and the verdicts on their answers; and
        send spans that wait in the store.

        Args:
            begin: called with each application that serves, before each request.
        """

        def instrument(application: Any) -> bool:
            if begin is not None:
                begin(application)
            return self._settings.http_spans and self._http.instrument(application)

        if self._redelivery is not None:
            self._redelivery.start()
        follow_requests(instrument, lambda send: Answer(send, self._counters))

    def put(self, report: RequestReport, content: Content | None = None) -> None:
        """Put a report out. An error is counted and never raised.

        Args:
            report: the report.
            content: the text of its tokens, for the store alone.
        """
        with about(report.admitted.known_id) as fields:  # also for the line on an error
            try:
                self._put(report, fields, content)
            except Exception:
                self._counters.count_loss(Loss.REPORT_FAULT)
                swallow("a report's output")

    def _put(self, report: RequestReport, fields: dict[str, str], content: Content | None) -> None:
        exemplar: SpanRecord | None = None  # the span, if it can be found
        if is_kept(report):
            record = self._spans.record(report)
            fields["trace_id"] = record.ids.trace_id
            self.store.put(record, content)  # first: the span's fate is noted in its row
            self._spans.send(record)
            if self._logs is not None:
                self._logs.send(record)
            if self._scores is not None:
                self._scores.send(record)
            if record.ids.exported:
                exemplar = record
                if record.parent is not None and not record.parent.trace_flags.sampled:
                    self._http.keep(record.ids.parent_id)
        _warn_of_bad_logits(report)
        self.metrics.report(report, exemplar)

    def take_http_span(self, span: PostedSpan) -> None:
        """The span of a request to an API server that has handed this hub its sequences."""
        self._http.take(span)

    def refresh(
        self,
        running: Mapping[str, int],
        looping: Mapping[str, int],
        alarmed: Mapping[str, int],
        events: int,
        tokens: Mapping[str, int],
    ) -> None:
        """Refresh the metrics of the current state.

        Args:
            running, looping, alarmed: sequences by model.
            events: that wait for the telemetry thread.
            tokens: as in :meth:`Recorder.refresh`.
        """
        self.metrics.refresh(running, looping, {"event": events, "report": self.store.waiting}, alarmed, tokens)

    def close(self) -> None:
        """Deliver what waits, within a bound."""
        logs, scores, redelivery = self._logs, self._scores, self._redelivery
        for step in (
            lambda: logs.stop() if logs is not None else None,  # first: it ends beside the spans
            lambda: redelivery.stop(0.5) if redelivery is not None else None,
            lambda: self._spans.shutdown(5.0),
            lambda: logs.shutdown(1.0) if logs is not None else None,
            lambda: scores.close(1.0) if scores is not None else None,
            lambda: self.store.close(3.0),
            lambda: self.metrics.refresh({}, {}, {"event": 0, "report": 0}),
            lambda: self.metrics.close(1.0),
        ):
            guarded("the hub's end")(step)()


def _warn_of_bad_logits(report: RequestReport) -> None:
    for what, there in (("NaN", report.health.nan_detected), ("Inf", report.health.inf_detected)):
        if there:
            warn_once(
                f"health:{what}",
                "%s among the logits of request %s: do not trust its output, check the model and its precision; "
                "further such requests are only counted in corevital_health_flags_total",
                what,
                printable(report.admitted.known_id),
            )
