"""The hub's loop: takes in frames and lifecycle events, gives out reports. One thread.

It runs in the API server process, beside the frontend's main thread, whose calls only append to a queue; or in a
separate process, to which engine cores send their sequences.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from opentelemetry import context

from corevital.frames.engine_key import HubIdentity
from corevital.frames.layout import Frame
from corevital.frames.lifecycle import INTERNAL_KINDS, Admitted, Finished
from corevital.frames.receiver import Letter, Receiver, Transit
from corevital.frames.stamp import Stamp
from corevital.guard import guarded, swallow
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.http.engine_route import EngineRoute, Protect
from corevital_otel.http.health import Health
from corevital_otel.http.reports import Reports
from corevital_otel.losses import Loss
from corevital_otel.measure.assembler import Assembler
from corevital_otel.metrics import families
from corevital_otel.metrics.instruments import OTHER
from corevital_otel.otlp import sampler
from corevital_otel.otlp.destination import Destination
from corevital_otel.otlp.resource import Facts
from corevital_otel.report import Admission, RequestReport
from corevital_otel.risk.baseline import BaselineRisk
from corevital_otel.risk.bases import profile_of, risk_model
from corevital_otel.sampling import Sampler
from corevital_otel.service import flag_settings
from corevital_otel.service.callers import Callers
from corevital_otel.service.core_intake import CoreIntake
from corevital_otel.service.cores import Cores
from corevital_otel.service.drains import Drains
from corevital_otel.service.early import EarlyFrames
from corevital_otel.service.frame_losses import MOST_LOST, FrameLosses
from corevital_otel.service.intake import Intake
from corevital_otel.service.open_requests import OpenRequests
from corevital_otel.service.output_texts import OutputTexts
from corevital_otel.service.outputs import Outputs
from corevital_otel.service.patience import Patience
from corevital_otel.service.relay import Relay
from corevital_otel.settings import Settings
from corevital_otel.spans.random_ids import random_id
from corevital_otel.store.content import MAX_TOKENS
from corevital_otel.store.reader import StoreError, StoreReader
from corevital_otel.verdicts.collector import Expected

_LAST_FRAMES_S: Final = 0.5
"""How long a stopping hub still receives frames of ended requests."""

_LAST_UNREAD_S: Final = 3.0
"""How long it goes on while frames still arrive."""

_QUIET_TURNS: Final = 3
"""After so many turns without a frame no more are expected."""

_STOP_S: Final = 10.0
"""Bound for everything at shutdown: reports, export, store."""

_GATHER_S: Final = 0.02
"""Frames within this time are read together: waking up for each costs more than reading it, and this thread shares
the interpreter with the one that serves requests."""

_AFTER_ERROR_S: Final = 0.5

_GRACE_S: Final = 3.0
"""A new hub process gives up no sequence for this long: workers try to connect once a second."""

_FACTS_EXPECTED: Final = 64
"""With COREVITAL_HUB engine cores send facts of each sequence. If they have of none of so many, none are waited for."""

_REFRESH_S: Final = 0.5
"""Between two refreshes of the gauges; an idle hub wakes up for nothing else."""

_MOST_EVENTS: Final = 65_536
"""Events that may wait for this thread. Beyond it no sequence is admitted; those already admitted may still end."""


class Hub:
    """Observer of one engine's requests; see :class:`corevital.frames.lifecycle.Observer`.

    Args:
        settings: the server's settings.
        model: the name that the engine's model is served under, where it is known: its metrics are there from the
            start.
        engine: facts of the engine, for the resource of its spans and metrics.
        where: where spans go; by default what the ``OTEL_*`` variables say.
        engine_traces: the engine's own tracing is on.
        identity: of a hub process; None: a new one.
        on_report: called with each report, besides.
        protect: puts the route to reports behind the key of the engine's own server; None: it has no such server.
        tokenizer: name or directory of the tokenizer of this process's engine, empty where unknown, and its revision.

    Raises:
        OSError: its address is in use, or does not belong to this host.
    """

    def __init__(
        self,
        settings: Settings,
        model: str = "",
        *,
        engine: Facts | None = None,
        where: Destination | None = None,
        engine_traces: bool = False,
        identity: HubIdentity | None = None,
        on_report: Callable[[RequestReport], None] | None = None,
        protect: Protect | None = None,
        tokenizer: tuple[str, str | None] = ("", None),
    ) -> None:
        profile = profile_of(settings)  # first: if it is wrong, nothing is open yet
        self._settings = settings
        self._on_report = on_report
        self.counters = Counters()
        self._receiver = Receiver(identity)
        self.left_out = self._stamp(0)
        """See :attr:`Observer.left_out`."""
        self._relay: Relay | None = None  # made by the thread
        choice = sampler.choose(settings)
        self._sampler = Sampler(choice.rate, by_trace_id=choice.by_trace_id, obeys_caller=choice.obeys_caller)
        self._outputs = Outputs(
            settings, self.counters, self._sampler, model, engine=engine, where=where, engine_traces=engine_traces
        )
        self._reports = Reports(self.is_running, settings.db)
        self._route = None if protect is None else EngineRoute(protect, self._reports)
        self._intake = Intake(self.counters)
        self._texts = OutputTexts(self.counters, tokenizer) if settings.stores_content else None
        self._patience = Patience(grace_s=0.0 if identity is None else _GRACE_S)
        self._risk = risk_model(settings, profile, self._outputs.store.learn)
        self._assembler = Assembler(
            on_report=self._reported,
            counters=self.counters,
            risk=self._risk,
            capture=settings.capture,
            likeliest_tokens=MAX_TOKENS if settings.stores_content else 0,
            clock=lambda: self._patience.now,
            facts_expected=_FACTS_EXPECTED if settings.hub is not None and identity is None else 0,
            thresholds=flag_settings.thresholds(settings, profile),
        )
        self._events: deque[Callable[[], None]] = deque()
        self._open = OpenRequests(self._assembler.runs, lambda: self._outputs.store.waiting > 0)
        content = settings.capture_content
        listener = CoreIntake(
            self._assembler,
            self._intake,
            self._sampler,
            content,
            self.internal,
            self.unobserved,
            self._events.append,
            self._outputs.take_http_span,
        )
        store = self._outputs.store
        self._cores = Cores(
            self._receiver,
            listener,
            self.counters,
            rows=lambda: (store.taken_in, 0 if store.failing else store.waiting),
            metrics=guarded("the hub's metrics")(families.encode),
        )
        self._early = None if identity is None else EarlyFrames(self._assembler.knows)
        self._refresh_at = 0.0
        self._stopping = threading.Event()
        self._callers = Callers()
        self._thread = threading.Thread(target=self._run, name="corevital-hub", daemon=True)
        self._quiet_turns = 0
        self._losses = FrameLosses(self.counters)
        self._drains = Drains()
        self._failed = False
        self._begun_at = self._turned_at = time.monotonic()

    def start(self) -> None:
        """Start listening. The process's exit stops it again, within a bound."""
        self._outputs.start(None if self._route is None else self._route.add)
        self._thread.start()
        atexit.register(self.close)

    def admit(self, request: Admitted) -> Stamp | None:
        """See :meth:`Observer.admit`; called inside the request's task, whose trace context becomes the parent."""
        collector = self._callers.collector(request)
        is_left_out = self._stopping.is_set() or request.sample is False
        if not is_left_out and len(self._events) >= _MOST_EVENTS:
            self.counters.count_loss(Loss.SEQUENCE_QUEUE_FULL)
            is_left_out = True
        if is_left_out:
            if collector is not None:
                collector.give_up()
            return None
        key = random_id(8)
        kept = self._intake.admitted(request)
        admission = self._sampler.admit(kept, context.get_current())
        if collector is not None:
            admission = replace(admission, on_report=self._callers.admit(key, collector))
        self._open.coming(key, kept.known_id)
        self._events.append(lambda: self._admitted(key, kept, admission))
        return self._stamp(key)._replace(urgent=collector is not None)

    def _stamp(self, key: int) -> Stamp:
        return Stamp(self._receiver.server, key, secret=self._receiver.secret, proof=self._receiver.proof)

    def finish(self, key: int, outcome: Finished) -> None:
        """See :meth:`Observer.finish`."""
        if self._stopping.is_set() and not self._thread.is_alive():
            return  # it was reported when the hub ended
        kept = self._intake.finished(outcome)
        expected = self._callers.ended(key)
        self._events.append(lambda: self._finished(key, kept, expected))
        self._receiver.wake()

    def internal(self, kind: str) -> None:
        """See :meth:`Observer.internal`."""
        known = kind if kind in INTERNAL_KINDS else OTHER
        self.counters.add(names.REQUESTS_INTERNAL, 1, kind=known)

    def unobserved(self, sequences: int) -> None:
        """Count new sequences that are not measured. Any thread may call it.

        Args:
            sequences: new ones; 0 or less counts nothing.
        """
        if sequences > 0:
            self.counters.add(names.SEQUENCES_UNOBSERVED, min(sequences, MOST_LOST))

    def drain(self, timeout_s: float) -> bool:
        """See :meth:`Observer.drain`."""
        if threading.current_thread() is self._thread:
            return False
        if self._drains.wait(timeout_s, self._receiver.wake, self._thread.is_alive):
            return True
        return not self._thread.is_alive() and not self._events  # it has ended, and reported all; or was never started

    def close(self, failed: bool = False) -> None:
        """Report what is still open, deliver what is queued within a bound, stop. Idempotent.

        Sequences of engine cores that still run are left to the next hub, to which their cores send them again.

        Args:
            failed: the engine has; its sequences end with an error.
        """
        if self._stopping.is_set():
            return
        self._failed = failed
        self._stopping.set()
        self._reports.closing = True
        self._callers.hurry()
        self._receiver.wake()
        if self._thread.ident is None:  # never started
            self._end()
        elif threading.current_thread() is not self._thread:  # where the engine's end may be noticed too
            self._thread.join(_STOP_S)
        atexit.unregister(self.close)  # a program may open and close many

    @guarded("the baseline's memory")
    def _remember(self) -> None:
        if isinstance(self._risk, BaselineRisk) and self._settings.db is not None:
            with contextlib.suppress(StoreError):  # there is none yet, or the writer reports why
                self._risk.remember(StoreReader(self._settings.db).learned())

    def _run(self) -> None:
        self._remember()
        while not self._stopping.is_set():
            self._receiver.wait(self._turn())
            self._callers.pause(_GATHER_S)
        begun = time.monotonic()
        self._turn()
        while self._assembler.running:
            spent = time.monotonic() - begun  # before the socket is read: what has arrived by now is taken in
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
            return _AFTER_ERROR_S

    def _take_in(self) -> float | None:
        """See :meth:`_turn`.

        Frames are received before events are read and handled after them: a frame's sequence was admitted before the
        frame was made, so it is known by then, whenever this thread was interrupted. Deadlines are judged by the
        moment at which the frames were read, however long the rest takes: see :class:`Patience`.
        """
        self._turned_at = time.monotonic()
        drains = self._drains.here()
        frames = self._read()
        self._quiet_turns = 0 if frames else self._quiet_turns + 1
        now = self._patience.turn(self._receiver.empty)
        for _ in range(len(self._events)):  # later ones wait for the next turn
            self._handle(self._events.popleft())
        for frame in frames if self._early is None else self._early.ready(frames):
            try:
                self._take(frame)
            except Exception:
                self.counters.count_loss(Loss.FRAME_FAULT)
                swallow("a frame's intake")
        self._losses.count_foreign(self._receiver)
        wait_s = self._tick(now)
        self._cores.end_alarmed(self._assembler.alarmed)
        self._cores.answer()
        if drains:
            self._drains.release(drains, self._assembler.ended)
        until_refresh_s = self._refresh()
        if not self._receiver.empty:
            return 0.0
        if self._early or self._cores.unanswered:
            return _GATHER_S
        return until_refresh_s if wait_s is None else min(wait_s, until_refresh_s)

    def _read(self) -> list[Frame]:
        """The frames that have arrived. Events of cores are handled at once: they are older than their frames."""
        frames = []
        for message in self._receiver.messages():
            match message:
                case Frame():
                    frames.append(message)
                case Letter():
                    self._handle(partial(self._cores.take, message))
                case Transit():
                    self._relay = self._relay or Relay(self.counters)
                    self._handle(partial(self._relay.pass_on, message))
        return frames

    def is_running(self, request_id: str) -> bool:
        """Whether a request runs, or its row is not in the store yet. Any thread may call it."""
        return request_id in self._open

    def serves_cores(self) -> bool:
        """Whether sequences of engine cores run. Any thread may ask."""
        return any(map(any, self._cores.unended()))

    def health(self) -> Health:
        """The state now. Any thread may call it."""
        now = time.monotonic()
        return Health(
            uptime_s=now - self._begun_at,
            turned_s=now - self._turned_at,
            running=self._assembler.running,
            queue=len(self._events),
            store_writable=None if self._settings.db is None else not self._outputs.store.failing,
            losses=self.counters.losses(),
            stopping=self._stopping.is_set(),
        )

    def _refresh(self) -> float:
        """Refresh the metrics of the current state, if it is time. Returns how long until the next time."""
        now = time.monotonic()
        if now >= self._refresh_at:
            self._refresh_at = now + _REFRESH_S
            assembler = self._assembler
            self._outputs.refresh(
                assembler.running_by_model,
                assembler.looping_by_model,
                assembler.alarmed_by_model,
                len(self._events),
                assembler.fresh_tokens(),
            )
        return self._refresh_at - now

    def _handle(self, event: Callable[[], None]) -> None:
        try:
            event()
        except Exception:
            self.counters.count_loss(Loss.EVENT_FAULT)
            swallow("an event's intake")

    def _admitted(self, key: int, request: Admitted, admission: Admission) -> None:
        with self._open.arriving(key):
            self._assembler.admit(key, request, admission)

    def _finished(self, key: int, outcome: Finished, expected: Expected | None) -> None:
        self._callers.wait_for(expected)
        if self._assembler.finish(key, outcome) is False:
            self._intake.release(outcome.text)

    def _tick(self, now: float) -> float | None:
        try:
            return self._assembler.tick(now)
        except Exception:
            swallow("the hub's turn")
            return _AFTER_ERROR_S

    def _take(self, frame: Frame) -> None:
        self._losses.count_dropped(frame)
        self._assembler.frame(frame)

    def _end(self) -> None:
        for _ in range(len(self._events)):
            self._handle(self._events.popleft())
        self._refresh_at = 0.0
        guarded("the hub's end")(self._refresh)()  # counts what the last turns have read
        guarded("the hub's end")(self._part_from_cores)()
        guarded("the hub's end")(self._assembler.close)(self._patience.now)
        guarded("the hub's end")(self._cores.answer)(at_end=True)
        if self._relay is not None:
            guarded("the hub's end")(self._relay.close)()
        self._outputs.close()
        guarded("the hub's end")(self._receiver.close)()

    def _part_from_cores(self) -> None:
        living, dead = self._cores.unended()
        for key in living:
            self._assembler.forget(key)
        for key in dead if self._failed else ():
            self._assembler.abandon(key)

    def _reported(self, report: RequestReport) -> None:
        with self._open.reporting(report.admitted.known_id):
            self._outputs.put(report, None if self._texts is None else self._texts.of(report))
        if self._on_report is not None:
            self._on_report(report)
        if report.admission.key is not None:
            self._cores.reported(report.admission.key)
        self._intake.release(report.admitted.prompt_text, report.outcome.text)
        if report.admission.on_report is not None:  # last: the caller may ask for the report next
            report.admission.on_report(report)
