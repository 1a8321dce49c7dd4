"""From tables on their way from the device to frames on their way to the API server, beside the engine's own thread.

A thread of its own, for two reasons: sending from the engine's thread holds a step up several times longer than waking
another, and an engine without work makes no next step in which the last tables could be looked after.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from corevital.engines.occupants import Occupants
from corevital.frames.record import REJECTED, ROW, SAMPLED
from corevital.guard import guarded

if TYPE_CHECKING:
    import torch

UNKNOWN: Final = -2
"""Stands for a token that nothing will ever be known of: no record is sent for it."""

_TOLERANCE: Final = 1e-4
"""Relative difference between a kept maximum and the one we saw, from which on the kept row is not trusted."""

_MAX_WAITING: Final = 256
"""Tables that may wait; past that a new one is dropped and counted."""

_POLL_S: Final = 0.0005
"""Between two looks at a copy that is under way."""

_GATHER_S: Final = 0.05
"""What is posted within this time is sent together: this thread takes turns with the engine's, and each waking of it
costs that one more than a few tables."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows of one step: of statistics, as wide as :data:`ROW`, or of sampled tokens.

    Attributes:
        words: ``[rows, words]`` int32 on the host; not to be read before ``done``.
        occupants: who was in the slots.
        done: when the copy from the device is, None if there was none.
    """

    words: torch.Tensor
    occupants: Occupants
    done: torch.cuda.Event | None

    @property
    def arrived(self) -> bool:
        """Whether ``words`` may be read. Does not wait."""
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]


class Courier:
    """Takes tables from the engine's thread and sends them, in order, from its own. Create it after any fork.

    Args:
        sender: where frames leave.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._waiting: deque[Table] = deque()
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="corevital-courier", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def post(self, table: Table) -> None:
        """Take a table on, or drop and count it. Never blocks."""
        if len(self._waiting) >= _MAX_WAITING:
            for server in set(table.occupants.servers.tolist()) - {None}:
                self._sender.drop(server, len(table.words))
            return
        self._waiting.append(table)
        self._woken.set()

    def close(self) -> None:
        """Send what has arrived, within a bound. Idempotent."""
        self._stopping = True
        self._woken.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        while not self._stopping:
            self._woken.wait()
            time.sleep(_GATHER_S)
            self._woken.clear()
            while self._waiting:
                self._send(self._waiting.popleft())
        self._sender.close()

    @guarded("the courier")
    def _send(self, table: Table) -> None:
        while not table.arrived:
            if self._stopping:
                return
            time.sleep(_POLL_S)
        deliver(table, self._sender)


def deliver(table: Table, sender: Sender) -> None:
    """Send a table that has arrived: a frame to each API server that wants rows of it."""
    words, occupants = table.words.numpy(), table.occupants
    if words.shape[1] == ROW.itemsize // 4:
        for server, rows in _by_server(words, words[:, 2], occupants):
            sender.send(server, rows=_rows(rows, occupants))
    else:
        words = words[words[:, 2] != UNKNOWN]
        for server, rows in _by_server(words, words[:, 1], occupants):
            sender.send(server, sampled=_sampled(rows, occupants))


def _by_server(words: Array, positions: Array, occupants: Occupants) -> Iterator[tuple[str, Array]]:
    """Rows that count, by the server that wants them. Nearly always there is one server."""
    slots = words[:, 0]
    servers = occupants.servers[slots]
    servers[(slots < 0) | (positions < occupants.firsts[slots])] = None
    for server in set(servers.tolist()) - {None}:
        yield server, words[servers == server]


def _rows(words: Array, occupants: Occupants) -> Array:
    slots = words[:, 0].copy()  # the keys are about to be written over them
    table = np.ascontiguousarray(words).view(ROW)[:, 0]
    table["key"] = occupants.keys[slots]
    table["index"] += occupants.bases[slots].astype(np.uint32)  # modulo 2^32, as a negative base needs it
    return table


def _sampled(words: Array, occupants: Occupants) -> Array:
    slots = words[:, 0]
    kept, kept_max, logsumexp, seen_max = np.ascontiguousarray(words[:, 3:]).view(np.float32).T
    table = np.zeros(len(words), SAMPLED)
    table["key"] = occupants.keys[slots]
    table["index"] = words[:, 1] + occupants.bases[slots]
    table["token"] = words[:, 2]
    with np.errstate(invalid="ignore", over="ignore"):
        scale = occupants.scales[slots]
        untouched = np.abs(kept_max * scale - seen_max) <= _TOLERANCE * (1 + np.abs(seen_max))
        logprob = kept * scale - logsumexp
        # a positive one is no log-probability: another processor has changed that very entry
        table["logprob"] = np.where(untouched & (logprob < _TOLERANCE) & (words[:, 2] != REJECTED), logprob, np.nan)
    return table
