"""The client of a hub in another process, for an engine core or an API server. Its calls only append to a queue.

One thread sends. The events of a sequence are kept until the hub answers that the sequence is reported, and sent again
to a new hub, so no sequence is lost when a hub dies. Sequences that cannot be kept are counted, and the count is sent
too. A hub that hangs, or never started, does not slow the engine down.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from typing import Final

import zmq

from corevital.frames import events
from corevital.frames.engine_key import engine_key
from corevital.frames.events import CoreInfo, Event
from corevital.frames.lifecycle import NO_VERDICT, Admitted, CoreFacts, Finished
from corevital.frames.receiver import MOST_BYTES
from corevital.frames.stamp import Stamp
from corevital.frames.wire import Routes, remember_hub
from corevital.guard import guarded, swallow
from corevital.log import warn_once

_GATHER_S: Final = 0.02
"""Events within this time are sent together. Frames wait ten times longer, so they come after their sequence."""

_BEAT_S: Final = 1.0
"""Between two messages of an idle core. The hub answers each, which is how a new hub is noticed."""

_WATCH_S: Final = 0.05
"""Between two looks for orders, while a sequence may be ended by one."""

_FIRST_S: Final = 60.0
"""How long the first answer may take: the hub's host may start later."""

_PATIENCE_S: Final = 30.0
"""After this long without an answer a warning is logged."""

_MOST_HELD: Final = 65_536
"""Sequences that are not reported yet. Beyond this number none is admitted."""

_MOST_TOKENS: Final = 16 << 20
"""Tokens of the ended ones among them, 64 MiB; each character of their stop strings and their content counts as one.
Beyond it the oldest sequence is dropped and counted."""

_MOST_EVENTS: Final = 256
_MOST_EVENT_TOKENS: Final = 512 << 10
"""In one message. It is split further if the hub would refuse it as too large."""

_MOST_TEXT: Final = 1 << 15
"""Characters of content that are kept of a sequence."""


@dataclass(slots=True)
class _Held:
    """A sequence that the hub has not reported yet."""

    admitted: Admitted
    finished: Finished | None = None
    weight: int = 0  # of its end, in tokens; 0: not counted yet


class RemoteHub:
    """Sends sequences to the deployment's hub process, and the core's facts to the hubs of the frontends.

    Args:
        tokenizer, revision: those of the model; see :class:`corevital.frames.events.CoreInfo`.
        wanted: called, in the sending thread, when a hub process is first needed.
        metrics: called there with the hub's metrics, about once a second; None: they are not wanted.
    """

    def __init__(
        self,
        tokenizer: str = "",
        revision: str | None = None,
        wanted: Callable[[], object] = lambda: None,
        metrics: Callable[[bytes], object] | None = None,
    ) -> None:
        self._key = engine_key()
        self._hub = remember_hub()
        self._metrics = metrics
        self._core = CoreInfo(
            engine=secrets.token_hex(8), tokenizer=tokenizer, revision=revision, shows_metrics=metrics is not None
        )
        self.left_out = self._stamp(0)
        """See :attr:`corevital.frames.lifecycle.Observer.left_out`."""
        self._wanted = guarded("the hub's start")(wanted)
        self._is_wanted = False
        self._events: deque[tuple[str, Event]] = deque()  # each with its server
        self._held: dict[int, _Held] = {}
        self._watched: dict[int, tuple[str, Callable[[], object]]] = {}  # by key: its server, and what ends it
        self._refused = 0  # sequences that were not admitted; only the engine's thread changes it
        # only the sending thread changes what follows
        self._tokens = 0  # of the ended ones
        self._lost = 0  # sequences, not sent yet
        self._lost_spans = 0  # likewise
        self._refused_sent = 0
        self._run: str | None = None  # the id in the hub's last answer
        self._answered_at: float | None = None  # or when a hub was first needed
        self._patience_s = _FIRST_S
        self._sent_at = -_BEAT_S
        self._resend: deque[Event] = deque()  # for a new hub
        self._routes: Routes | None = None
        self._woken = threading.Event()
        self._idle = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._go, name="corevital-core", daemon=True)
        self._thread.start()
        # an engine's process may be a fork, whose exit skips atexit
        self._at_exit = Finalize(None, self.close, exitpriority=0)

    def want(self) -> None:
        """Start the hub process now instead of with the first sequence."""
        self._is_wanted = True
        self._woken.set()

    def admit(self, request: Admitted) -> Stamp | None:
        """See :meth:`corevital.frames.lifecycle.Observer.admit`. Never waits."""
        if request.verdict:  # the hub is in no process that answers
            warn_once("verdict", NO_VERDICT, "telemetry is not in the process of a Python API server")
            request = replace(request, verdict=False)
        if request.sample is False or self._stopping:
            return None
        if len(self._held) >= _MOST_HELD:
            self._refused += 1
            return None
        key, request = secrets.randbits(64) or 1, request.bounded(_MOST_TEXT)
        self._held[key] = _Held(request)
        self._post(self._hub.server, Event("admit", key, request))
        return self._stamp(key)

    def _stamp(self, key: int) -> Stamp:
        return Stamp(self._hub.server, key, secret=self._hub.secret, proof=self._key.proof(self._hub.server))

    def finish(self, key: int, outcome: Finished) -> None:
        """See :meth:`corevital.frames.lifecycle.Observer.finish`. Never waits."""
        held = self._held.get(key)
        if held is None or held.finished is not None:
            return
        held.finished = outcome.bounded(_MOST_TEXT)
        self._post(self._hub.server, Event("finish", key, held.finished))

    def facts(self, stamp: Stamp, facts: CoreFacts) -> None:
        """Send what the core knows of an ended sequence that a frontend has stamped. Never waits."""
        self._post(stamp.server, Event("facts", stamp.key, facts), wants=False)  # its frontend keeps that hub running

    def watch(self, stamp: Stamp, end: Callable[[], object]) -> None:
        """Have the hub of a stamp order the end of its sequence, once its alarm is raised. Never waits.

        Args:
            stamp: the sequence's, ours or a frontend's.
            end: called then, in the sending thread.
        """
        self._watched[stamp.key] = stamp.server, end
        self._post(stamp.server, Event("watch", stamp.key, None), wants=False)

    def unwatch(self, key: int) -> None:
        """The sequence has ended."""
        self._watched.pop(key, None)

    def internal(self, kind: str) -> None:
        """See :meth:`corevital.frames.lifecycle.Observer.internal`."""
        self._post(self._hub.server, Event("internal", 0, kind))

    def span(self, span: object) -> None:
        """Send the span of a request over HTTP, a dataclass. It is not sent again to a new hub."""
        self._post(self._hub.server, Event("span", 0, span))

    def unobserved(self, sequences: int) -> None:
        """See :meth:`corevital.frames.lifecycle.Observer.unobserved`."""
        self._post(self._hub.server, Event("unobserved", 0, sequences))

    def drain(self, timeout_s: float) -> bool:
        """Wait until the hub has reported every ended sequence, for at most this long. Returns whether it has."""
        self._woken.set()
        with self._idle:
            return self._idle.wait_for(lambda: not self._events and not self._has_ended(), timeout_s)

    def close(self) -> None:
        """Send what is queued, within a bound. Idempotent."""
        self._at_exit.cancel()
        self._stopping = True
        self._woken.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def _has_ended(self) -> bool:
        return any(held.finished is not None for held in self._held.copy().values())  # a copy: the other thread adds

    def _post(self, server: str, event: Event, *, wants: bool = True) -> None:
        if self._stopping:
            return
        self._is_wanted = self._is_wanted or (wants and server == self._hub.server)
        self._events.append((server, event))
        if not self._woken.is_set():
            self._woken.set()

    def _go(self) -> None:
        self._routes = Routes()
        while not self._stopping:
            self._woken.wait(_WATCH_S if self._watched else _BEAT_S if self._is_wanted else None)
            self._woken.clear()
            time.sleep(_GATHER_S)
            self._turn(self._routes)
        self._turn(self._routes)
        self._routes.close()

    @guarded("the core's events")
    def _turn(self, routes: Routes) -> None:
        if self._is_wanted:
            if not self._stopping:
                self._wanted()
            self._read_answers(routes)
        per_server: dict[str, list[Event]] = {}
        for _ in range(len(self._events)):
            server, event = self._events.popleft()
            per_server.setdefault(server, []).append(event)
            if event.kind == "finish":
                self._weigh(event.key)
        for server, its_events in per_server.items():
            if server != self._hub.server or not self._is_wanted:
                self._send(routes, server, its_events)
        if self._is_wanted:
            self._send_new(routes, per_server.get(self._hub.server, []))
        if self._watched:
            self._read_orders(routes)
        with self._idle:
            self._idle.notify_all()

    def _send_new(self, routes: Routes, new: list[Event]) -> None:
        """Send the hub process new events, those that a new hub needs again, and losses; else a heartbeat."""
        self._drop_oldest()
        refused = self._refused
        self._lost += refused - self._refused_sent
        self._refused_sent = refused
        if self._is_silent():  # with its next answer everything is sent again
            new = [event for event in new if event.kind not in {"admit", "finish"}]
        else:
            lost = Event("lost", 0, self._lost), Event("lost spans", 0, self._lost_spans)
            new += [event for event in lost if event.about]
            self._lost = self._lost_spans = 0
        new = [*self._resend, *new]  # in this order: the new ones may hold the end of a sequence that is sent again
        self._resend.clear()
        if not new and time.monotonic() - self._sent_at < _BEAT_S / 2:
            return
        self._sent_at = time.monotonic()
        unsent = self._send(routes, self._hub.server, new)
        self._lost += sum(event.about for event in unsent if event.kind == "lost")
        self._lost_spans += sum(event.about for event in unsent if event.kind == "lost spans")
        self._lost_spans += sum(event.kind == "span" for event in unsent)
        if unsent:
            self._run = None  # with its next answer everything unreported is sent again

    def _send(self, routes: Routes, server: str, batch: list[Event]) -> list[Event]:
        """Send events in messages of bounded size. Returns those that could not be sent."""
        try:
            route, _ = routes.to(server)
        except Exception:
            swallow("the connection to a hub")
            return batch
        if route is None:
            return batch
        waiting = deque(_split(batch))
        while waiting:
            part = waiting.popleft()
            message = self._encoded(part)
            if message is None and len(part) > 1:
                middle = len(part) // 2
                waiting.extendleft((part[middle:], part[:middle]))
            elif message is None:
                self._drop(part[0].key)
            elif not routes.send(route, message):
                return [event for each in (part, *waiting) for event in each]
        return []

    def _encoded(self, batch: list[Event]) -> list[bytes] | None:
        """Events as a message; None if it is too large or one of them cannot be encoded."""
        try:
            message = events.encode(self._core, batch)
        except Exception:
            if len(batch) == 1:
                swallow("an event of the core")
            return None
        return message if max(map(len, message)) <= MOST_BYTES else None

    @guarded("the hub's answers")
    def _read_answers(self, routes: Routes) -> None:
        """Read the hub's answers: forget what is reported, and notice a new hub."""
        if self._answered_at is None:
            self._answered_at = time.monotonic()
        route, _ = routes.to(self._hub.server)
        while route is not None:
            try:
                body, *metrics = route.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            found = events.read_answer(body)
            if found is None:
                warn_once(
                    "hub version",
                    "the hub runs another version of corevital: sequences of this engine may be lost; restart both in "
                    "the same version",
                )
                self._answered_at = time.monotonic()
                continue
            self._answered(*found)
            if metrics and self._metrics is not None:
                self._metrics(metrics[0])
        if self._is_silent():
            self._run = None
            warn_once(
                "hub silent",
                "no hub has answered for %.0f s at %s: requests are unaffected, and up to %d sequences are kept for "
                "it; check that `corevital hub` runs there with the same COREVITAL_HUB and COREVITAL_HUB_KEY",
                self._patience_s,
                self._hub.tcp or "this host's socket",
                _MOST_HELD,
            )

    @guarded("the hubs' orders")
    def _read_orders(self, routes: Routes) -> None:
        """Read what hubs answer that are not the one whose answers are read anyway."""
        servers = {server for server, _ in self._watched.copy().values()}
        for server in servers - ({self._hub.server} if self._is_wanted else set()):
            route, _ = routes.to(server)
            if route is not None and route.prefix:
                warn_once(
                    "alarm relayed",
                    "an alarm ends no sequence of a frontend on another host: start it where its engine runs",
                )
                continue
            while route is not None:
                try:
                    body, *_rest = route.socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                if (found := events.read_answer(body)) is not None:
                    self._end(found.ends)

    def _end(self, keys: Sequence[int]) -> None:
        for key in keys:
            if (watched := self._watched.get(key)) is not None:
                watched[1]()

    def _is_silent(self) -> bool:
        return self._answered_at is not None and time.monotonic() - self._answered_at > self._patience_s

    def _answered(self, run: str, reported: list[int], ends: Sequence[int] = ()) -> None:
        self._end(ends)
        self._answered_at, self._patience_s = time.monotonic(), _PATIENCE_S
        for key in reported:
            held = self._held.pop(key, None)
            if held is not None:
                self._tokens -= held.weight
        if run != self._run:
            self._run = run
            for key, held in self._held.copy().items():
                self._resend.append(Event("admit", key, held.admitted))
                if held.finished is not None:
                    self._resend.append(Event("finish", key, held.finished))
                elif key in self._watched:
                    self._resend.append(Event("watch", key, None))
            self._woken.set()

    def _weigh(self, key: int) -> None:
        """Count the tokens of a sequence that has ended."""
        held = self._held.get(key)
        if held is not None and held.finished is not None and not held.weight:
            rule = held.finished.stop_rule
            texts = *(rule.stop if rule else ()), held.finished.text or "", held.admitted.prompt_text or ""
            held.weight = max(len(held.finished.token_ids) + sum(map(len, texts)), 1)
            self._tokens += held.weight

    def _drop(self, key: int) -> None:
        """Forget a sequence that is not reported, and count it."""
        held = self._held.pop(key, None)
        if held is not None:
            self._tokens -= held.weight
            self._lost += 1

    def _drop_oldest(self) -> None:
        """Drop the oldest ended sequences while they hold too many tokens."""
        if self._tokens <= _MOST_TOKENS:
            return
        for key, held in self._held.copy().items():
            if held.weight:
                self._drop(key)
            if self._tokens <= _MOST_TOKENS:
                return


def _split(batch: list[Event]) -> Iterator[list[Event]]:
    """Events by message; one message at least, which may be empty."""
    at = 0
    while True:
        end, tokens = at, 0
        while end < len(batch) and end - at < _MOST_EVENTS and tokens < _MOST_EVENT_TOKENS:
            tokens += len(batch[end].about.token_ids) if batch[end].kind == "finish" else 0
            end += 1
        yield batch[at:end]
        if end >= len(batch):
            return
        at = end
