"""What leaves an engine for the API server, and how it compares with what should have."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from integration.gpu.place import Place

from corevital.frames.layout import REJECTED
from corevital.steps.device import make_current, recorder_for
from corevital.steps.frame_thread import FrameThread
from corevital.steps.step import SampledStep, Step

_TOLERANCE = 1e-3
"""Of a statistic or log-probability, nats: far above float32's, far below what another row's would differ by."""


class Wanted(NamedTuple):
    """What should leave of a row; ``is_told``: with its token."""

    logsumexp: float
    entropy: float
    token: int
    logprob: float
    is_told: bool = True


class Sink:
    """A stand-in for the sender of frames: keeps each row and token by (key, output index)."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], tuple[float, float]] = {}
        self.tokens: dict[tuple[int, int], tuple[int, float]] = {}
        self.dropped = self.twice = 0
        self._lock = threading.Lock()

    def send(self, server: str, rows: Any = (), sampled: Any = ()) -> None:
        """Keep a frame."""
        with self._lock:
            for row in rows:
                at = int(row["key"]), int(row["index"])
                self.twice += at in self.rows
                self.rows[at] = float(row["logsumexp"]), float(row["entropy"])
            for record in sampled:
                at = int(record["key"]), int(record["index"])
                if record["token"] == REJECTED:
                    self.rows.pop(at, None)
                else:
                    self.tokens[at] = int(record["token"]), float(record["logprob"])

    def drop(self, server: str, records: int) -> None:
        """Count what was lost on the way."""
        self.dropped += records

    def close(self) -> None:
        """Nothing is queued."""


class Discarding(Sink):
    """Keeps nothing, for what is timed or runs for long."""

    def send(self, server: str, rows: Any = (), sampled: Any = ()) -> None:
        """Forget a frame."""


class Measuring:
    """A recorder and a frame thread as the plugin makes them, in front of a sink. A context, which ends the thread.

    Args:
        place: where.
        rows: of a step at most.
        sink: takes what leaves; None: it is discarded.
        sends: whether steps reach the frame thread, which holds them for a quarter of a second; else they end at once.

    Attributes:
        lost: rows that were seen and not measured.
    """

    def __init__(self, place: Place, rows: int, sink: Sink | None = None, sends: bool = True) -> None:
        self.sink = sink or Discarding()
        self.frame_thread = FrameThread(self.sink, lambda: make_current(place.device))
        self.lost = 0
        post = self.frame_thread.post if sends else _forget
        recorder = recorder_for(place.vocab, rows, 0.1, place.device, post)
        if recorder is None:
            raise RuntimeError("the plugin does not measure here; the log has the reason")
        self.recorder = recorder
        self._observe, recorder.record_logits = recorder.record_logits, self._counting  # type: ignore[method-assign, assignment]

    def _counting(self, logits: torch.Tensor, at: torch.Tensor | None, *others: Any) -> Any:
        observed = self._observe(logits, at, *others)
        if observed is None:
            self.lost += len(logits) if at is None else len(at)
        return observed

    @property
    def nbytes(self) -> int:
        """What it reports to hold on the device."""
        return int(self.recorder._tables.nbytes)  # type: ignore[union-attr]

    def __enter__(self) -> Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        self.frame_thread.close()


def _forget(step: Step | SampledStep) -> None:
    pass


class Differences(NamedTuple):
    """How many records differ from what they should be, and how."""

    lost: int
    extra: int
    wrong: int
    tokens: int
    logprobs: int
    twice: int

    @property
    def number(self) -> int:
        """All of them."""
        return sum(self)

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self._asdict().items())


def differences(wanted: dict[tuple[int, int], Wanted], sink: Sink) -> Differences:
    """Compare. A log-probability that was withheld (NaN) is a difference too: nothing here changes logits for it."""
    rows, tokens = sink.rows, sink.tokens
    told = {at: one for at, one in wanted.items() if one.is_told}
    return Differences(
        lost=sum(at not in rows for at in wanted),
        extra=sum(at not in wanted for at in rows) + sum(at not in told for at in tokens),
        wrong=sum(not _is_near(rows[at], one[:2]) for at, one in wanted.items() if at in rows),
        tokens=sum(at not in tokens or tokens[at][0] != one.token for at, one in told.items()),
        logprobs=sum(not _is_near(tokens[at][1:], [one.logprob]) for at, one in told.items() if at in tokens),
        twice=sink.twice,
    )


def _is_near(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=0, abs_tol=_TOLERANCE) for a, b in zip(found, wanted, strict=True))
