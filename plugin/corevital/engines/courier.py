"""From tables on their way from the device to frames on their way to the API server, beside the engine's own thread.

A thread of its own, for two reasons: sending from the engine's thread holds a step up several times longer than waking
another, and an engine without work makes no next step in which the last tables could be looked after.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from multiprocessing.util import Finalize
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from corevital.engines.occupants import Occupants
from corevital.engines.steps import POSITION, SLOT, UNKNOWN, Part, Step
from corevital.frames.record import REJECTED, ROW, SAMPLED
from corevital.guard import guarded

_TOLERANCE: Final = 1e-4
"""Relative difference between a kept maximum and the one we saw, from which on the kept row is not trusted."""

_MAX_WAITING: Final = 1024
"""Steps that may wait; past that a new one is dropped and counted."""

_POLL_S: Final = 0.0005
"""Between two looks at a copy that is under way."""

_GATHER_S: Final = 0.25
"""What is posted within this time is sent together: this thread takes turns with the engine's, and a turn costs half a
millisecond, whose code is in no cache by then, and little for each step. A step that still lacks its tokens then waits
for them as long again."""

_DEEP: Final = 32
"""Rows of one sequence that are sent in one frame at most. All of a frame's rows come before its tokens, and the
telemetry half keeps this many indices of a sequence open for what comes out of order."""

_TOGETHER: Final = 1024
"""Rows of several steps that are sent in one frame at most."""

_STOP_S: Final = 0.5
"""How long a process that ends waits for the last frames."""

Array = npt.NDArray[Any]


class Sender(Protocol):
    """What is needed of :class:`corevital.frames.transport.FrameSender`."""

    def send(self, server: str, rows: Array = ..., sampled: Array = ...) -> None:
        """Send or drop one frame, never block. Called from one thread."""

    def drop(self, server: str, records: int) -> None:
        """Count records that were lost on their way to a server."""

    def close(self) -> None:
        """Deliver what is queued within a bound."""


class Courier:
    """Takes steps from the engine's thread and sends them, in order, from its own. Create it after any fork.

    Args:
        sender: where frames leave.
        begin: called first in the thread.
    """

    def __init__(self, sender: Sender, begin: Callable[[], object] = lambda: None) -> None:
        self._sender = sender
        self._begin = guarded("the courier's start")(begin)
        self._waiting: deque[Step] = deque()
        self._lock = threading.Lock()  # over whether a step's tokens leave with its rows
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="corevital-courier", daemon=True)
        self._thread.start()
        Finalize(None, self.close, exitpriority=0)  # an engine's process may be a fork, whose exit skips atexit

    def post(self, step: Step) -> None:
        """Take a step on, or drop and count it: when it is observed, and again when it is settled. Never blocks."""
        if step.tokens is not None:
            with self._lock:
                if not step.awaited:
                    return  # it is here still
        if len(self._waiting) >= _MAX_WAITING:
            for server in set(step.occupants.servers.tolist()) - {None}:
                self._sender.drop(server, step.size)
            step.awaited = True
            return
        self._waiting.append(step)
        if not self._woken.is_set():
            self._woken.set()

    def close(self) -> None:
        """Send what has arrived, within a bound. Idempotent."""
        self._stopping = True
        self._woken.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        self._begin()
        late = 0  # steps that have been here for a turn without their tokens
        while not self._stopping:
            if not late:
                self._woken.wait()
            time.sleep(_GATHER_S)
            self._woken.clear()
            while self._waiting and (late > 0 or self._waiting[0].tokens is not None):
                steps = self._next()
                late -= len(steps)
                self._send(steps)
            late = len(self._waiting)
        while self._waiting:
            self._send(self._next())
        self._sender.close()

    def _next(self) -> list[Step]:
        """The oldest step, and those after it that fit into its frame; alone if only its tokens are still to be sent.

        They may take a row back, and would take the next step's row of the same index with it.
        """
        steps = [self._waiting.popleft()]
        rows, deep = steps[0].size, steps[0].deep
        while not steps[0].awaited and self._waiting:
            step = self._waiting[0]
            is_like = step.occupants is steps[0].occupants and (step.where is None) == (steps[0].where is None)
            if not is_like or step.tokens is None or step.awaited:
                break
            rows, deep = rows + step.size, deep + step.deep
            if rows > _TOGETHER or deep > _DEEP:
                break
            steps.append(self._waiting.popleft())
        return steps

    @guarded("the courier")
    def _send(self, steps: list[Step]) -> None:
        with self._lock:
            parts = [step.take() for step in steps]
        while not all(part.arrived for part in parts):
            if self._stopping:
                return
            time.sleep(_POLL_S)
        deliver(parts, steps[0].occupants, self._sender)


def deliver(parts: Sequence[Part], occupants: Occupants, sender: Sender) -> None:
    """Send parts of steps with the same occupants, all arrived: a frame to each API server that wants rows of them.

    Args:
        parts: all of them fresh, or one that is not; all with ``where``, or none.
        occupants: theirs.
        sender: where frames leave.
    """
    frames: defaultdict[str, dict[str, Array]] = defaultdict(dict)
    words = np.concatenate([part.step.rows.words for part in parts])
    if places := [part.step.where for part in parts if part.step.where is not None]:
        words[:, SLOT] = list(chain.from_iterable(slots for slots, _ in places))
        words[:, POSITION] = list(chain.from_iterable(positions for _, positions in places))
    tokens = np.concatenate([part.told() for part in parts])
    is_fresh = parts[0].fresh
    if is_fresh:
        words, tokens = _only(tokens[:, 0] != REJECTED, words, tokens)  # never sent, so that none has to be taken back
    known, their_tokens = _only(tokens[:, 0] != UNKNOWN, words, tokens)
    for server, mine in _by_server(known, occupants):  # before the rows, which are made in the memory of the words
        frames[server]["sampled"] = _sampled(known[mine], their_tokens[mine], occupants)
    if is_fresh:
        for server, mine in _by_server(words, occupants):
            frames[server]["rows"] = _rows(words[mine], occupants)
    for server, tables in frames.items():
        sender.send(server, **tables)


def _only(these: Array, words: Array, tokens: Array) -> tuple[Array, Array]:
    return (words, tokens) if these.all() else (words[these], tokens[these])


def _by_server(words: Array, occupants: Occupants) -> Iterator[tuple[str, Array | slice]]:
    """Which rows count, by the server that wants them. Nearly always there is one server."""
    if len(words) == 0:
        return
    if occupants.server is not None:
        yield occupants.server, slice(None)
        return
    slots = words[:, SLOT]
    servers = occupants.servers[slots]
    servers[(slots < 0) | (words[:, POSITION] < occupants.firsts[slots])] = None
    for server in set(servers.tolist()) - {None}:
        yield server, servers == server


def _rows(words: Array, occupants: Occupants) -> Array:
    """The words as the rows they are to be, in their own memory."""
    slots = words[:, SLOT].copy()  # the keys are about to be written over them
    table = words.view(ROW)[:, 0]
    table["key"] = occupants.keys[slots]
    table["index"] += occupants.bases[slots].astype(np.uint32)  # modulo 2^32, as a negative base needs it
    return table


def _sampled(words: Array, tokens: Array, occupants: Occupants) -> Array:
    slots, rows = words[:, SLOT], words.view(ROW)[:, 0]
    _, kept, kept_max = tokens.view(np.float32).T
    table = np.zeros(len(words), SAMPLED)
    table["key"] = occupants.keys[slots]
    table["index"] = words[:, POSITION] + occupants.bases[slots]
    table["token"] = tokens[:, 0]
    with np.errstate(invalid="ignore", over="ignore"):
        scale = occupants.scales[slots]
        untouched = np.abs(kept_max * scale - rows["max_logit"]) <= _TOLERANCE * (1 + np.abs(rows["max_logit"]))
        logprob = kept * scale - rows["logsumexp"]
        # a positive one is no log-probability: another processor has changed that very entry
        table["logprob"] = np.where(untouched & (logprob < _TOLERANCE) & (tokens[:, 0] != REJECTED), logprob, np.nan)
    return table
