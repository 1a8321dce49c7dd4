"""Reads the events that engine cores send this hub, and answers which sequences they may forget.

Not thread-safe. A core sends an event again if it does not know whether it arrived, so a repeated event changes nothing
and is not counted as a loss.
"""

from __future__ import annotations

import math
import secrets
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from pydantic import TypeAdapter, ValidationError

from corevital.frames import events
from corevital.frames.events import CoreInfo
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital.frames.receiver import Letter, Receiver
from corevital.guard import swallow
from corevital.log import warn_once
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.spans.posted import PostedSpan

CORE_SILENT_S: Final = 2.5
"""An engine core sends something every second. One that has not for so long has ended."""

_REMEMBERED: Final = 65_536
"""Keys of reported sequences that are kept: events of those are only answered."""

_GONE_S: Final = 60.0
"""A core sends a message every second. After this long without one it is gone, and so are its running sequences."""

_MOST_LOST: Final = 2**32
"""Larger counts of a core are cut to this."""

_KEYS: Final = range(1, 2**64)

_WRITTEN_S: Final = 2.0
"""The longest that an answer waits until the row of its sequence is written. A kill of the hub loses rows that are not.
"""

_METRICS_S: Final = 0.9
"""Between two answers with metrics to the same client, at least."""

_ADMITTED: Final = TypeAdapter(Admitted)
_FINISHED: Final = TypeAdapter(Finished)
_FACTS: Final = TypeAdapter(CoreFacts)
_CORE: Final = TypeAdapter(CoreInfo)
_SPAN: Final = TypeAdapter(PostedSpan)


class Listener(Protocol):
    """What a hub does with the events of engine cores."""

    def admits(self, key: int, request: Admitted) -> None:
        """A sequence arrives."""

    def finishes(self, key: int, outcome: Finished, core: CoreInfo) -> None:
        """It has ended."""

    def is_gone(self, key: int) -> None:
        """Its core is gone without having reported its end."""

    def facts(self, key: int, facts: CoreFacts) -> None:
        """What the core knows of a sequence that a frontend has admitted."""

    def internal(self, kind: str) -> None:
        """A sequence arrives that serves no client directly."""

    def unobserved(self, sequences: int) -> None:
        """New sequences that are not measured."""

    def span(self, span: PostedSpan) -> None:
        """The span of a request over HTTP has ended."""


class Cores:
    """Reads the messages of engine cores.

    Args:
        receiver: sends the answers.
        listener: the hub.
        counters: counts what cannot be read.
        clock: seconds, monotonic.
        rows: how many rows the store was given so far, and how many of those are not written yet.
        metrics: the hub's, encoded for a client that shows them; None: there are none now.
    """

    def __init__(
        self,
        receiver: Receiver,
        listener: Listener,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
        rows: Callable[[], tuple[int, int]] = lambda: (0, 0),
        metrics: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._last_at: dict[bytes, float] = {}  # when each client last sent something
        self._check_at = 0.0
        self._receiver = receiver
        self._listener = listener
        self._counters = counters
        self._run = secrets.token_hex(8)  # of this hub
        self._client_of: dict[int, bytes] = {}  # of sequences not reported yet: the last to send one of their events
        self._ended: set[int] = set()  # of those
        self._watched: OrderedDict[int, bytes] = OrderedDict()  # sequences whose alarm ends them, and their cores
        self._ends: dict[bytes, list[int]] = {}  # of those, the ones whose end is to be ordered
        self._reported: OrderedDict[int, None] = OrderedDict()
        self._answers: dict[bytes, list[int]] = {}
        self._rows = rows
        self._metrics = metrics
        self._metrics_at: dict[bytes, float] = {}  # of clients that show them: when they may be sent next
        self._unwritten: deque[tuple[int, float, bytes, int]] = deque()  # number of the row, deadline, client, key

    def take(self, letter: Letter) -> None:
        """Read one message. Events that cannot be read are counted."""
        answers = self._answers.setdefault(letter.client, [])
        self._last_at[letter.client] = self._clock()
        body = events.read_object(letter.body[0])
        if body is None or body.get("v") != events.VERSION:
            self._counters.count_loss(Loss.EVENT_VERSION)
            warn_once(
                "event version",
                "events dropped: an engine and this hub run different versions of corevital: restart both in the same "
                "version",
            )
            return
        try:
            core = _CORE.validate_python(body.get("core"))
            tokens = array("i")
            tokens.frombytes(b"".join(letter.body[1:]))
            received = list(body["events"])
            if core.shows_metrics:
                self._metrics_at.setdefault(letter.client, 0.0)
        except (ValidationError, ValueError, KeyError, TypeError):
            self._counters.count_loss(Loss.EVENT_MALFORMED)
            return
        at = 0
        for event in received:
            try:
                kind, key, about = event
                if kind == "finish":
                    count = int(about["token_ids"])
                    own, at = tokens[at : at + count], at + count
                    about = {**about, "token_ids": ()}
                    self._finish(int(key), about, own, letter.client, core, answers)
                else:
                    self._event(str(kind), int(key), about, letter.client, answers)
            except (ValidationError, ValueError, KeyError, TypeError, OverflowError):
                self._counters.count_loss(Loss.EVENT_MALFORMED)
            except Exception:
                self._counters.count_loss(Loss.EVENT_FAULT)
                swallow("an event's intake")

    def _event(self, kind: str, key: int, about: Any, client: bytes, answers: list[int]) -> None:
        match kind:
            case "admit" if key in self._reported:
                answers.append(key)
            case "admit" if key in self._client_of:
                self._client_of[key] = client
            case "admit":
                if key not in _KEYS:
                    raise ValueError(key)
                try:
                    request = _ADMITTED.validate_python(_finite(about))
                except ValueError:
                    answers.append(key)  # its core would only send the same again
                    raise
                self._client_of[key] = client
                self._listener.admits(key, request)
            case "span":
                self._listener.span(_SPAN.validate_python(_finite(about)))
            case "watch" | "facts":
                self._watch(key, client, None if kind == "watch" else about)
            case "internal":
                self._listener.internal(str(about))
            case "unobserved":
                self._listener.unobserved(_count(about))
            case "lost":
                self._counters.count_loss(Loss.SEQUENCE_HUB_GONE, _count(about))
            case "lost spans":
                self._counters.count_loss(Loss.SPAN_HUB_GONE, _count(about))
            case _:
                raise ValueError(kind)

    def _watch(self, key: int, client: bytes, facts: Any) -> None:
        """Watch a sequence for its core; or, with facts, do so no longer: it has ended."""
        if facts is not None:
            self._watched.pop(key, None)
            self._listener.facts(key, _FACTS.validate_python(_finite(facts)))
            return
        self._watched[key] = client
        if len(self._watched) > _REMEMBERED:
            self._watched.popitem(last=False)

    def _finish(
        self, key: int, about: Mapping[str, Any], tokens: array[int], client: bytes, core: CoreInfo, answers: list[int]
    ) -> None:
        if key in self._reported:
            answers.append(key)
        elif key in self._client_of and key not in self._ended:
            self._client_of[key] = client
            try:
                outcome = _FINISHED.validate_python(_finite(about))
            except ValueError:
                self._listener.is_gone(key)
                raise
            self._ended.add(key)
            self._watched.pop(key, None)
            self._listener.finishes(key, replace(outcome, token_ids=tokens), core)

    def end_alarmed(self, alarmed: Callable[[], Iterable[int]]) -> None:
        """Order the end of those watched sequences whose alarm is raised.

        Args:
            alarmed: their keys, among any others'; not called where none is watched.
        """
        for key in alarmed() if self._watched else ():
            client = self._watched.pop(key, None)
            if client is not None:
                self._ends.setdefault(client, []).append(key)
                self._answers.setdefault(client, [])

    @property
    def unanswered(self) -> bool:
        """Whether an answer waits for a row."""
        return bool(self._unwritten)

    def reported(self, key: int) -> None:
        """A sequence is reported: its core may forget it."""
        client = self._client_of.pop(key, None)
        self._ended.discard(key)
        if client is None:
            return
        self._reported[key] = None
        if len(self._reported) > _REMEMBERED:
            self._reported.popitem(last=False)
        self._unwritten.append((self._rows()[0], self._clock() + _WRITTEN_S, client, key))

    def unended(self) -> tuple[list[int], list[int]]:
        """Keys of sequences that have not ended: of cores that still run, and of others."""
        now = self._clock()
        living: list[int] = []
        dead: list[int] = []
        for key, client in list(self._client_of.items()):
            if key not in self._ended:
                (living if now - self._last_at.get(client, -math.inf) < CORE_SILENT_S else dead).append(key)
        return living, dead

    def answer(self, *, at_end: bool = False) -> None:
        """Answer each core that has sent a message, or has a newly reported sequence, since the last call.

        A core that reconnects is a new client. The id of the run in its answers is then a new one too, so it sends
        everything again that may have been lost with the old connection.

        Args:
            at_end: for the last time: do not wait for rows any more.
        """
        self._take_written(at_end)
        answers, self._answers = self._answers, {}
        now = self._clock()
        for client, keys in answers.items():
            metrics = None
            if now >= self._metrics_at.get(client, math.inf):
                self._metrics_at[client] = now + _METRICS_S
                metrics = self._metrics()
            answer = events.answer(self._run + client.hex(), keys, self._ends.pop(client, ()))
            self._receiver.answer(client, answer, *([] if metrics is None else [metrics]))
        self._check_gone()

    def _take_written(self, at_end: bool) -> None:
        if not self._unwritten:
            return
        (given, waiting), now = self._rows(), self._clock()
        while self._unwritten and (at_end or self._unwritten[0][0] <= given - waiting or self._unwritten[0][1] <= now):
            _, _, client, key = self._unwritten.popleft()
            self._answers.setdefault(client, []).append(key)

    def _check_gone(self) -> None:
        now = self._clock()
        if now < self._check_at:
            return
        if self._check_at and now - self._check_at > _GONE_S / 2:  # this process stood still
            self._last_at = dict.fromkeys(self._last_at, now)
        self._check_at = now + _GONE_S / 10
        gone = {client for client, at in self._last_at.items() if now - at > _GONE_S}
        for client in gone:
            del self._last_at[client]
            self._metrics_at.pop(client, None)
        if gone:
            for key in [key for key, client in self._watched.items() if client in gone]:
                del self._watched[key]
            for key in [key for key, client in self._client_of.items() if client in gone and key not in self._ended]:
                self._listener.is_gone(key)


def _finite(about: Any) -> Any:
    """The same; what JSON's readers make of ``NaN`` and ``1e999`` would stay in a histogram's sum for ever.

    Raises:
        ValueError: a number in it is not finite.
    """
    if isinstance(about, float) and not math.isfinite(about):
        raise ValueError(about)
    for item in about.values() if isinstance(about, dict) else about if isinstance(about, list) else ():
        _finite(item)
    return about


def _count(about: object) -> int:
    return min(max(int(about), 0), _MOST_LOST) if isinstance(about, int) else 0
