"""The telemetry half's one thread: takes in frames and lifecycle events, gives out finished reports.

Runs in the API server process, beside the frontend's main thread. Calls from there only append to a queue.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from opentelemetry import context

from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.record import Frame
from corevital.frames.stamp import Stamp
from corevital.frames.transport import FrameReceiver
from corevital.guard import guarded, swallow
from corevital.log import about, warn_once
from corevital.text import cut, printable
from corevital_otel import conventions as names
from corevital_otel import profiles
from corevital_otel.assembler import Assembler
from corevital_otel.attributes import span_attributes
from corevital_otel.counters import Counters
from corevital_otel.destination import Destination, destination
from corevital_otel.errors import SettingsError
from corevital_otel.http import follow_requests
from corevital_otel.http_spans import HttpSpans
from corevital_otel.intake import Intake, without_content
from corevital_otel.metrics import otlp
from corevital_otel.metrics.exposition import Exposition
from corevital_otel.metrics.instruments import Output
from corevital_otel.metrics.recorder import Recorder
from corevital_otel.patience import Patience
from corevital_otel.random_ids import random_id
from corevital_otel.report import RequestReport
from corevital_otel.resource import Facts
from corevital_otel.risk.baseline import BaselineRisk
from corevital_otel.risk.bases import profile_of, risk_model, watch_of
from corevital_otel.sampling import Sampler, is_drawn, is_kept
from corevital_otel.settings import Settings
from corevital_otel.spans import SpanEmitter
from corevital_otel.store.reader import StoreError, StoreReader
from corevital_otel.store.writer import StoreWriter
from corevital_otel.thresholds import Thresholds

_LAST_FRAMES_S: Final = 0.5
"""How long a stopping hub still listens for frames of requests that have ended."""

_LAST_UNREAD_S: Final = 3.0
"""How long it reads on while frames still come."""

_QUIET_TURNS: Final = 3
"""Turns without a frame after which no more are on their way."""

_STOP_S: Final = 10.0
"""Bound for everything at shutdown: reports, export, store."""

_GATHER_S: Final = 0.02
"""What comes within this time is taken in together: waking for each frame costs more than reading it, and this thread
shares the interpreter with the one that serves requests."""

_AFTER_FAULT_S: Final = 0.5

_REFRESH_S: Final = 0.5
"""Between two readings of the current state; an idle hub wakes up for nothing else."""

_MOST_EVENTS: Final = 65_536
"""Events that may wait for this thread; beyond it no sequence is admitted, and those that are may still end."""

_SENDERS: Final = 1024
"""Workers whose count of lost records is remembered; the one heard of longest ago goes first."""

_MOST_LOST: Final = 2**32
"""Records that a worker can have lost between two frames: a larger count is not believed."""


class _Drain:
    """Somebody waits until the sequences that had ended when they asked are reported."""

    def __init__(self) -> None:
        self.left: set[int] | None = None  # keys; None: not looked at yet
        self.done = threading.Event()


class Hub:
    """Observer of one engine's requests; see :class:`corevital.frames.lifecycle.Observer`.

    Args:
        settings: the server's settings.
        model: the name that the engine's model is served under, where it is known: its metrics are there from the
            start.
        engine: facts of the engine, for the resource of its spans and metrics.
        where: where spans go; by default what the ``OTEL_*`` variables say.
        engine_traces: the engine makes spans of its own.
    """

    def __init__(
        self,
        settings: Settings,
        model: str = "",
        *,
        engine: Facts | None = None,
        where: Destination | None = None,
        engine_traces: bool = False,
    ) -> None:
        profile = profile_of(settings)  # first of all: nothing is open yet where it is wrong
        self._settings = settings
        self.counters = Counters()
        self._receiver = FrameReceiver()
        where = where or destination()
        wanted = profiles.parse(settings.otel_profile)
        self._spans = SpanEmitter(
            self.counters,
            where,
            profiles=profiles.recognised(where) if wanted is None else wanted,
            engine=engine and {name: cut(fact) if isinstance(fact, str) else fact for name, fact in engine.items()},
            fate=self._settled,
        )
        self._store = StoreWriter(
            settings.db,
            settings.db_retention_days,
            settings.db_max_mb,
            self.counters,
            self._spans.resource.attributes,
        )
        self._sampler = Sampler(settings.sample_rate)
        self._http = HttpSpans(self._spans, settings.sample_rate, propagate_inwards=engine_traces)
        self._intake = Intake(self.counters)
        self._patience = Patience()
        self._risk = risk_model(settings, profile, self._store.learn)
        self._assembler = Assembler(
            on_report=self._reported,
            counters=self.counters,
            risk=self._risk,
            capture=settings.capture,
            clock=lambda: self._patience.now,
            thresholds=Thresholds(
                high_entropy_bits=settings.high_entropy_bits,
                high_entropy_tokens=settings.high_entropy_tokens,
                collapse_tokens=settings.collapse_tokens,
                loop_tokens=settings.loop_tokens,
                alarm=watch_of(settings, profile),
            ),
        )
        self._metrics = Recorder(list(self._outputs()), self.counters, [cut(model)] if model else [])
        self._refresh_at = 0.0
        self._events: deque[Callable[[], None]] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="corevital-hub", daemon=True)
        self._quiet_turns = 0
        self._lost: dict[int, int] = {}  # sender -> records it had dropped when we last heard
        self._foreign = 0, 0  # the receiver's counts, as they were passed on last
        self._drains: deque[_Drain] = deque()

    def _outputs(self) -> Iterator[Output]:
        if (exposition := guarded("the start of /metrics")(Exposition)()) is not None:
            yield exposition
        if otlp.endpoint() is not None:
            try:
                # one resource for spans and metrics: backends join the two by it
                yield otlp.Otlp(self._spans.resource, self.counters)
            except SettingsError as error:
                warn_once("metrics", "%s; metrics are on /metrics only", error)

    def start(self) -> None:
        """Start listening. The process's exit stops it again, within a bound."""
        follow_requests(self._http.instrument if self._settings.http_spans else None)
        self._thread.start()
        atexit.register(self.close)

    def admit(self, request: Admitted) -> Stamp | None:
        """See :meth:`Observer.admit`; called inside the request's task, whose trace context becomes the parent."""
        if self._stopping.is_set() or request.sample is False:
            return None
        if len(self._events) >= _MOST_EVENTS:
            self.counters.add(names.DROPPED, what="sequence", why="queue_full")
            return None
        key = random_id(8)
        kept = self._intake.admitted(request)
        parent = self._sampler.admit(kept, context.get_current())
        self._events.append(lambda: self._assembler.admit(key, kept, parent))
        return Stamp(self._receiver.server, key, secret=self._receiver.secret)

    def finish(self, key: int, outcome: Finished) -> None:
        """See :meth:`Observer.finish`."""
        if self._stopping.is_set() and not self._thread.is_alive():
            return  # it was reported when the hub ended
        kept = self._intake.finished(outcome)
        self._events.append(lambda: self._finished(key, kept))
        self._receiver.wake()

    def drain(self, timeout_s: float) -> bool:
        """See :meth:`Observer.drain`."""
        if threading.current_thread() is self._thread:
            return False
        drain = _Drain()
        self._drains.append(drain)
        self._receiver.wake()
        deadline = time.monotonic() + timeout_s
        try:
            while self._thread.is_alive():
                left = deadline - time.monotonic()
                if drain.done.wait(max(min(left, _REFRESH_S), 0.0)) or left <= 0:
                    return drain.done.is_set()
            return not self._events  # it has ended, and reported all; or was never started
        finally:
            self._drains.remove(drain)

    def close(self) -> None:
        """Report what is still open, deliver what is queued within a bound, stop. Idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._receiver.wake()
        if self._thread.ident is None:  # never started
            self._end()
        elif threading.current_thread() is not self._thread:  # where the engine's end may be noticed too
            self._thread.join(_STOP_S)

    @guarded("the baseline's memory")
    def _remember(self) -> None:
        if isinstance(self._risk, BaselineRisk) and self._settings.db is not None:
            with contextlib.suppress(StoreError):  # none yet, or one that the writer has its own words for
                self._risk.remember(StoreReader(self._settings.db).learned())

    def _run(self) -> None:
        self._remember()
        while not self._stopping.is_set():
            self._receiver.wait(self._turn())
            self._stopping.wait(_GATHER_S)
        begun = time.monotonic()
        self._turn()
        while self._assembler.running:
            spent = time.monotonic() - begun  # before the socket is read: what had arrived by then is taken in
            self._turn()
            if spent >= (_LAST_FRAMES_S if self._quiet_turns >= _QUIET_TURNS else _LAST_UNREAD_S):
                break
            self._receiver.wait(0.05)
        self._end()

    def _turn(self) -> float | None:
        """Take in what is here, within bounds. Returns how long to wait for more."""
        try:
            return self._take_in()
        except Exception:
            swallow("the hub's turn")
            return _AFTER_FAULT_S

    def _take_in(self) -> float | None:
        """See :meth:`_turn`.

        Frames are received before events are read and handled after them: a frame's sequence was admitted before the
        frame was made, so it is known by then, whenever this thread was interrupted. Deadlines are judged by the
        moment at which the frames were read, however long the rest takes: see :class:`Patience`.
        """
        drains = list(self._drains)
        frames = list(self._receiver.frames())
        self._quiet_turns = 0 if frames else self._quiet_turns + 1
        now = self._patience.turn(self._receiver.empty)
        for _ in range(len(self._events)):  # those that come meanwhile have the next turn
            self._handle(self._events.popleft())
        for frame in frames:
            self._take(frame)
        self._count_foreign()
        wait_s = self._tick(now)
        if drains:
            self._settle_drains(drains)
        until_refresh_s = self._refresh()
        if not self._receiver.empty:
            return 0.0
        return until_refresh_s if wait_s is None else min(wait_s, until_refresh_s)

    def _settle_drains(self, drains: list[_Drain]) -> None:
        ended = self._assembler.ended
        for drain in drains:
            drain.left = ended if drain.left is None else drain.left & ended
            if not drain.left:
                drain.done.set()

    def _count_foreign(self) -> None:
        """Count what came from elsewhere, or was no frame."""
        (malformed, refused), self._foreign = self._foreign, (self._receiver.malformed, self._receiver.refused)
        self.counters.add(names.DROPPED, self._foreign[0] - malformed, what="frame", why="malformed")
        self.counters.add(names.DROPPED, self._foreign[1] - refused, what="frame", why="unauthenticated")

    def _refresh(self) -> float:
        """Refresh the metrics of the current state, if it is time. Returns how long until the next time."""
        now = time.monotonic()
        if now >= self._refresh_at:
            self._refresh_at = now + _REFRESH_S
            waiting = {"event": len(self._events), "report": self._store.waiting}
            self._metrics.refresh(
                self._assembler.running_by_model,
                self._assembler.looping_by_model,
                waiting,
                self._assembler.alarmed_by_model,
            )
        return self._refresh_at - now

    @guarded("an event's intake")
    def _handle(self, event: Callable[[], None]) -> None:
        event()

    def _finished(self, key: int, outcome: Finished) -> None:
        if self._assembler.finish(key, outcome) is False:
            self._intake.release(outcome.text)

    def _tick(self, now: float) -> float | None:
        try:
            return self._assembler.tick(now)
        except Exception:
            swallow("the hub's turn")
            return _AFTER_FAULT_S

    @guarded("a frame's intake")
    def _take(self, frame: Frame) -> None:
        before = self._lost.pop(frame.sender, 0)
        self._lost[frame.sender] = max(frame.dropped, before)
        if len(self._lost) > _SENDERS:
            del self._lost[next(iter(self._lost))]
        if frame.dropped > before:
            lost = min(frame.dropped - before, _MOST_LOST)
            self.counters.add(names.DROPPED, lost, what="record", why="queue_full")
        self._assembler.frame(frame)

    def _end(self) -> None:
        for _ in range(len(self._events)):
            self._handle(self._events.popleft())
        for step in (
            lambda: self._assembler.close(self._patience.now),
            lambda: self._spans.shutdown(5.0),
            lambda: self._store.close(3.0),
            lambda: self._metrics.refresh({}, {}, {"event": 0, "report": 0}),
            lambda: self._metrics.close(1.0),
            self._receiver.close,
        ):
            guarded("the hub's end")(step)()

    def _settled(self, span_ids: Sequence[str], delivered: bool) -> None:
        self._store.settle(span_ids, delivered)

    def _reported(self, report: RequestReport) -> None:
        with about(report.admitted.request_id) as fields:  # also for the line on a fault
            self._put_out(report, fields)
        self._intake.release(report.admitted.prompt_text, report.outcome.text)

    @guarded("a report's output")
    def _put_out(self, report: RequestReport, fields: dict[str, str]) -> None:
        found = None  # the ids that somebody can find the request's span by
        if is_kept(report):
            attributes = span_attributes(report)  # once, for the span and for the row
            ids = self._spans.emit(
                report, partial(self._store.put, without_content(report), attributes=attributes), attributes
            )
            fields["trace_id"] = ids.trace_id
            if ids.exported:
                found = ids
                if not is_drawn(report):
                    self._http.keep(ids.parent_id)
        for what, there in (("NaN", report.health.nan_detected), ("Inf", report.health.inf_detected)):
            if there:
                warn_once(
                    f"health:{what}",
                    "%s among the logits of request %s: its output is not to be trusted; check the model and its "
                    "precision; further such requests are counted in corevital_health_flags_total",
                    what,
                    printable(report.admitted.request_id),
                )
        self._metrics.report(report, found)
