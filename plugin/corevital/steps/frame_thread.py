"""The frame thread: from tables on their way from the device to frames on their way to the API server.

It is a thread for two reasons: sending from the engine's thread delays a step several times longer than waking another
thread, and an idle engine makes no next step in which the last tables could be sent.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Final

from corevital.guard import guarded
from corevital.steps.packing import Sender, deliver
from corevital.steps.slots import Owners
from corevital.steps.step import Columns, Part, SampledStep, Step

_MAX_WAITING: Final = 1024
"""Steps that may wait; beyond that a new one is dropped and counted."""

_POLL_S: Final = 0.0005
"""Between two looks at a copy that is under way."""

_GATHER_S: Final = 0.25
"""What is posted within this time is sent together: this thread takes turns with the engine's, and a turn costs half a
millisecond, whose code is in no cache by then, and little for each step. A step that still lacks its tokens then waits
for them as long again. :meth:`FrameThread.hurry` cuts it short."""

_DEEP: Final = 32
"""Rows of one sequence that are sent in one frame at most. All of a frame's rows come before its tokens, and the
telemetry half keeps this many indices of a sequence open for what comes out of order."""

_TOGETHER: Final = 1024
"""Rows of several steps that are sent in one frame at most."""

_STOP_S: Final = 0.5
"""How long a process that ends waits for the last frames."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """What of a step waits to be sent: its rows, its tokens, or both. See :class:`corevital.steps.step.Part`."""

    step: Step
    has_rows: bool
    tokens: Columns | None


class FrameThread:
    """Takes steps from the engine's thread and sends them in order. Create it after any fork.

    Args:
        sender: where frames leave.
        begin: called first in the thread.
    """

    def __init__(self, sender: Sender, begin: Callable[[], object] = lambda: None) -> None:
        self._sender = sender
        self._begin = guarded("the start of the frame thread")(begin)
        self._waiting: deque[_Waiting] = deque()
        self._unsent: dict[Step, _Waiting] = {}  # of those, the ones with rows
        self._lock = threading.Lock()  # over whether a step's tokens leave with its rows
        self._woken = threading.Event()
        self._hurried = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="corevital-frames", daemon=True)
        self._thread.start()
        Finalize(None, self.close, exitpriority=0)  # an engine's process may be a fork, whose exit skips atexit

    def post(self, phase: Step | SampledStep) -> None:
        """Take on a phase of a step, or drop and count it. Never blocks. Called from one thread."""
        if isinstance(phase, Step):
            waiting = _Waiting(phase, True, None)
        else:
            with self._lock:
                if (unsent := self._unsent.get(phase.step)) is not None:
                    unsent.tokens = phase.tokens
                    return
            waiting = _Waiting(phase.step, False, phase.tokens)
        if len(self._waiting) >= _MAX_WAITING:
            self.lose(waiting.step.owners, waiting.step.size)
            return
        if waiting.has_rows:
            self._unsent[waiting.step] = waiting
        self._waiting.append(waiting)
        if not self._woken.is_set():
            self._woken.set()

    def hurry(self) -> None:
        """Send what waits now, and not when its time has come: somebody waits for it. Never blocks."""
        if self._waiting:
            self._hurried.set()

    def lose(self, owners: Owners, rows: int) -> None:
        """Count rows that will not be sent, for each server that has requests among them."""
        for server in set(owners.servers.tolist()) - {None}:
            self._sender.drop(server, rows)

    def close(self) -> None:
        """Send what has arrived, within a bound. Idempotent."""
        self._stopping = True
        self._woken.set()
        self._hurried.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        self._begin()
        late = 0  # steps that have been here for a turn without their tokens
        while not self._stopping:
            if not late:
                self._woken.wait()
            is_hurried = self._hurried.wait(_GATHER_S)
            self._hurried.clear()
            self._woken.clear()
            while self._waiting and (is_hurried or late > 0 or self._waiting[0].tokens is not None):
                together = self._next()
                late -= len(together)
                self._send(together)
            late = len(self._waiting)
        while self._waiting:
            self._send(self._next())
        self._sender.close()

    def _next(self) -> list[_Waiting]:
        """The oldest that waits, and those after it that fit into its frame; tokens without their rows go alone.

        They may take a row back, and would take the next step's row of the same index with it.
        """
        first = self._waiting.popleft()
        together, rows, deep = [first], first.step.size, first.step.deep
        while first.has_rows and self._waiting:
            other = self._waiting[0]
            ours, theirs = first.step, other.step
            is_like = theirs.owners is ours.owners and (theirs.where is None) == (ours.where is None)
            if not is_like or other.tokens is None or not other.has_rows:
                break
            rows, deep = rows + theirs.size, deep + theirs.deep
            if rows > _TOGETHER or deep > _DEEP:
                break
            together.append(self._waiting.popleft())
        return together

    @guarded("the frame thread")
    def _send(self, together: list[_Waiting]) -> None:
        with self._lock:
            for waiting in together:
                self._unsent.pop(waiting.step, None)
            parts = [Part(waiting.step, waiting.has_rows, waiting.tokens) for waiting in together]
        while not all(part.arrived for part in parts):
            if self._stopping:
                return
            time.sleep(_POLL_S)
        deliver(parts, parts[0].step.owners, self._sender)
