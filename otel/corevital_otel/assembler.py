"""From frames and lifecycle events to reports: exactly one for each admitted sequence.

Single-threaded: one thread makes all calls. Nothing here waits. Sequences that have ended are put aside, and
:meth:`Assembler.tick`, called once a turn, measures and reports together those whose records are all there: most of
what a report costs is the same for one sequence and for many. What has to wait for late records gets a deadline.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Tokens
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final, Protocol
from zlib import crc32

import numpy as np
import numpy.typing as npt

from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.record import STAGES, Frame
from corevital.guard import swallow
from corevital_otel import features, loops
from corevital_otel.report import Features, Health, RequestReport, Risk
from corevital_otel.risk import RiskModel
from corevital_otel.sequence import Sequence, Tails, Windows
from corevital_otel.thresholds import Thresholds

Array = npt.NDArray[Any]

CAPTURES: Final = ("summary", "full", "on_risk")

_DROPPED: Final = "corevital.telemetry.dropped"
_REMEMBERED: Final = 4096
"""Reported sequences that are still recognised, so that their surplus records are not taken for strangers."""

_BATCH: Final = 64
"""Sequences measured together at most, which bounds the memory it takes; more would hardly be cheaper."""


class Adder(Protocol):
    """What is needed of :class:`corevital_otel.counters.Counters`."""

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add to a counter."""


class Assembler:
    """Assembles one report for each admitted sequence, in whatever order its records and its end arrive.

    A sequence is complete when a row has come for each token its client got; surplus rows (asynchronous scheduling,
    drafts) are trimmed. One that is not complete ``wait_s`` after its end is reported as incomplete.

    Args:
        on_report: receives each finished report, on the calling thread.
        counters: where losses are counted.
        risk: the risk model.
        capture: the server's capture mode. ``summary`` keeps no series and ``full`` every one. ``on_risk`` keeps the
            series of a sequence whose risk is high or that has a health flag up; not that of one that is merely
            incomplete, which says something of the telemetry and nothing of the output.
        wait_s: longest wait for records after a sequence's end.
        surprisal_wait_s: longest wait, of that, where only a token's log-probability is still to come.
        thresholds: of the flags.
        max_live: sequences that may be live at once; beyond it the oldest is reported as incomplete.
        max_windows: of those, sequences with records, which need more memory (see :class:`Windows`).
        max_series_tokens: tokens kept of a series at most; those beyond are counted, and the series is that much
            shorter than the output.
        clock: what ``tick`` and ``close`` are given the time of. It must stand still while records are known to wait
            unread: a sequence is given up by it.
        wall_ns: wall clock for sequences that never ended.
    """

    def __init__(
        self,
        on_report: Callable[[RequestReport], None],
        counters: Adder,
        *,
        risk: RiskModel,
        capture: str = "on_risk",
        wait_s: float = 2.0,
        surprisal_wait_s: float = 0.25,
        thresholds: Thresholds | None = None,
        max_live: int = 100_000,
        max_windows: int = 16_384,
        max_series_tokens: int = 32_768,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._on_report = on_report
        self._counters = counters
        self._risk = risk
        self._capture = capture
        self._wait_s = wait_s
        self._surprisal_wait_s = min(surprisal_wait_s, wait_s)
        self._max_live = max_live
        self._max_windows = max_windows
        self._max_series_tokens = max_series_tokens
        self._clock = clock
        self._wall_ns = wall_ns
        self._thresholds = thresholds or Thresholds()
        self._windows = Windows(self._thresholds, max_series_tokens)
        self._live: dict[int, Sequence] = {}  # oldest first
        self._pending: dict[int, Sequence] = {}  # ended ones to look at: new, with new records, or due
        self._deadlines: list[tuple[float, int, Sequence]] = []  # a heap; may hold sequences reported since
        self._order = count()
        self._running: Counter[str] = Counter()
        self._reported: dict[int, bool] = {}  # the last ones: key -> complete

    @property
    def running(self) -> int:
        """Sequences admitted and not reported yet."""
        return len(self._live)

    @property
    def ended(self) -> set[int]:
        """Keys of those that have ended and still wait for records."""
        return {key for key, sequence in self._live.items() if sequence.outcome is not None}

    @property
    def looping(self) -> int:
        """Of those, the ones that were in a repetition loop at the last reading, up to 64 tokens ago."""
        return self._windows.looping

    @property
    def running_by_model(self) -> dict[str, int]:
        """Sequences in the engine now, by model; one that has ended is not among them, reported or not."""
        return dict(self._running)

    @property
    def looping_by_model(self) -> dict[str, int]:
        """Of those, the ones in a repetition loop at the last reading."""
        return self._windows.looping_by_model()

    @property
    def alarmed_by_model(self) -> dict[str, int]:
        """Of those, the ones whose alarm is raised."""
        return self._windows.alarmed_by_model()

    def admit(self, key: int, admitted: Admitted, parent: Any = None) -> None:
        """A sequence comes in.

        Args:
            key: its stamp's key.
            admitted: what the frontend knows of it.
            parent: handed through to the report.
        """
        if key in self._live:
            self._drop(1, "sequence", "duplicate_key")
            return
        if len(self._live) >= self._max_live:
            self._settle(self._clock())
        while len(self._live) >= self._max_live:
            self._evict(next(iter(self._live.values())))
        capture = admitted.capture if admitted.capture in CAPTURES else self._capture
        self._live[key] = Sequence(key, admitted, parent, capture)
        self._running[admitted.model] += 1

    @np.errstate(all="ignore")  # a broken worker's values may be anything
    def frame(self, frame: Frame) -> None:
        """Take in a frame's records."""
        for records, put in ((frame.rows, self._windows.put_rows), (frame.sampled, self._windows.put_sampled)):
            if not len(records):
                continue
            slots = self._slots(records["key"].tolist(), frame.runner)
            known = slots >= 0
            late, wild = put(slots, records) if known.all() else put(slots := slots[known], records[known])
            self._drop(late, "record", "late")
            self._drop(wild, "record", "index_out_of_range")
            for sequence in self._windows.ended(slots):
                self._pending[sequence.key] = sequence

    def finish(self, key: int, outcome: Finished) -> bool:
        """A sequence has ended, however it came. If it is complete the next :meth:`tick` at the latest reports it.

        Returns:
            Whether it was running; otherwise the end is counted and ignored.
        """
        sequence = self._live.get(key)
        if sequence is None:
            self._drop(1, "finish", "already_reported" if key in self._reported else "unknown_sequence")
            return False
        if sequence.outcome is not None:
            self._drop(1, "finish", "duplicate")
            return False
        sequence.tokens = _token_array(outcome.token_ids)
        sequence.outcome = replace(outcome, token_ids=sequence.tokens.data)  # four bytes each, in place of forty
        sequence.finished_at = self._clock()
        self._left(sequence.admitted.model)
        self._windows.finished(sequence)
        self._pending[key] = sequence
        if len(self._pending) >= _BATCH:
            self._settle(sequence.finished_at)
        return True

    def tick(self, now: float) -> float | None:
        """Report what is complete and what has waited long enough.

        Returns:
            Seconds until the next deadline, None if there is none.
        """
        while self._deadlines and (self._deadlines[0][0] <= now or not self._is_live(self._deadlines[0][2])):
            sequence = heappop(self._deadlines)[2]
            if self._is_live(sequence):
                sequence.deadline = math.inf
                self._pending[sequence.key] = sequence
        self._settle(now)
        while self._deadlines and not self._is_live(self._deadlines[0][2]):
            heappop(self._deadlines)
        return self._deadlines[0][0] - now if self._deadlines else None

    def close(self, now: float) -> None:
        """Report everything: what is due, what still waits, and as aborted what never ended."""
        self.tick(now)
        for batch in _batches(self._live):
            self._report(batch)
        self._deadlines.clear()

    def _left(self, model: str) -> None:
        """One less runs. Adapters can be loaded under ever new names: none is kept for which nothing runs."""
        self._running[model] -= 1
        if not self._running[model]:
            del self._running[model]

    def _is_live(self, sequence: Sequence) -> bool:
        return self._live.get(sequence.key) is sequence

    def _drop(self, amount: int, what: str, why: str) -> None:
        if amount:
            self._counters.add(_DROPPED, amount, what=what, why=why)

    def _slots(self, keys: list[int], runner: str) -> Array:
        """The window of each record's sequence, -1 for a sequence we do not know."""
        slot_of = self._windows.slot_of
        found = list(map(slot_of.get, keys))  # of all that run, at each frame: twice as fast as a comprehension
        if None in found:
            for key in [key for key, slot in zip(keys, found, strict=True) if slot is None]:
                sequence = self._live.get(key)
                if sequence is not None and sequence.slot < 0:
                    self._open(sequence, runner)
            found = list(map(slot_of.get, keys))  # opening may have closed another
        if None in found:
            for key in [key for key, slot in zip(keys, found, strict=True) if slot is None]:
                self._count_stranger(key)
            return np.array([-1 if slot is None else slot for slot in found], np.int64)
        return np.array(found, np.int64)

    def _open(self, sequence: Sequence, runner: str) -> None:
        if len(self._windows) >= self._max_windows:
            self._settle(self._clock())
            if not self._is_live(sequence):
                return
        if len(self._windows) >= self._max_windows:
            self._evict(next(other for other in self._live.values() if other.slot >= 0))
        sequence.runner = runner
        self._windows.open(sequence)

    def _count_stranger(self, key: int) -> None:
        complete = self._reported.get(key)
        if complete is None:
            self._drop(1, "record", "unknown_sequence")
        elif not complete:
            self._drop(1, "record", "late")
        # else: surplus of a sequence whose report is whole. Asynchronous scheduling makes one a request.

    def _evict(self, sequence: Sequence) -> None:
        self._drop(1, "sequence", "too_many_live")
        self._report([sequence])

    def _settle(self, now: float) -> None:
        """Report the pending sequences for which nothing more is to be waited for."""
        pending, self._pending = self._pending, {}
        for batch in _batches(pending):
            arrived = []
            for sequence, has_arrived in zip(batch, self._windows.arrived(batch), strict=True):
                if has_arrived or now >= sequence.finished_at + self._wait_s:
                    arrived.append(sequence)
                else:
                    self._put_deadline(sequence, self._wait_s)
            if arrived:
                self._report(arrived, now)

    def _put_deadline(self, sequence: Sequence, wait_s: float) -> None:
        deadline = sequence.finished_at + wait_s
        if deadline < sequence.deadline:
            sequence.deadline = deadline
            heappush(self._deadlines, (deadline, next(self._order), sequence))

    @np.errstate(all="ignore")
    def _report(self, sequences: list[Sequence], now: float = math.inf) -> None:
        """Report sequences; by a time given, those that may still wait for a token's log-probability do so.

        Each report is made, its sequence forgotten, and the report handed on: in this order, so that no fault makes
        two of it.
        """
        tails = self._windows.tails(sequences)
        for i, sequence in enumerate(sequences):
            if not tails.exact[i] and now < sequence.finished_at + self._surprisal_wait_s:
                self._put_deadline(sequence, self._surprisal_wait_s)
                continue
            report = self._make(sequence, tails, i)
            self._forget(sequence, not report.incomplete)
            try:
                self._on_report(report)
            except Exception:
                self._drop(1, "report", "fault")
                swallow("a report's receiver")

    def _make(self, sequence: Sequence, tails: Tails, i: int) -> RequestReport:
        """The report of a sequence, the ``i``-th of the tails."""
        outcome = sequence.outcome or Finished(reason="abort", token_ids=(), end_ns=self._wall_ns())
        length = tails.last[i] if sequence.tokens is None else len(sequence.tokens)
        summary = tails.features[i]
        if sequence.tokens is not None:
            self._drop(max(length - summary.tokens, 0), "record", "missing")
        loop, agrees = self._find_loop(sequence, tails, i)
        if not agrees:
            self._drop(1, "sequence", "other_tokens")
        health = self._judge(outcome, tails, i, loop)
        risk = self._assess(summary, health, sequence.admitted)
        series = None
        if sequence.capture == "full" or (sequence.capture == "on_risk" and (risk.level == "high" or health.flags)):
            series = self._windows.series(sequence, tails, i, length) if length else None
            self._drop(max(length - self._max_series_tokens, 0), "series", "too_long")
        runner = sequence.runner or sequence.admitted.runner
        if risk.shifted:
            health = replace(health, traffic_shifted=True)
        return RequestReport(
            admitted=sequence.admitted,
            outcome=outcome,
            features=summary,
            health=health,
            risk=risk,
            series=series,
            capture=sequence.capture,
            incomplete=not (tails.whole[i] and agrees),
            runner=runner,
            stage=STAGES.get(runner, "raw"),
            parent=sequence.parent,
        )

    def _judge(self, outcome: Finished, tails: Tails, i: int, loop: tuple[int, int] | None) -> Health:
        """The flags of a sequence, the ``i``-th of the tails; that of the traffic is still to come."""
        found, limits = tails.features[i], self._thresholds
        period, onset = loop or (None, None)
        alarm_signal, alarm_onset = None, None
        if limits.alarm is not None:
            alarm_signal, watch = limits.alarm
            if tails.alarmed_at[i] >= 0:
                alarm_onset = tails.alarmed_at[i]
            elif features.short_peak(found, watch.peak) > watch.threshold:
                alarm_onset = max(tails.last[i] - 1, 0)
        return Health(
            nan_detected=tails.nan[i],
            inf_detected=tails.inf[i],
            repetition_loop_detected=loop is not None or outcome.reason == "repetition",
            truncated=outcome.reason == "length",
            loop_onset=onset,
            loop_period=period,
            sustained_high_entropy=found.high_entropy_run >= limits.high_entropy_tokens,
            distribution_collapsed=found.frozen_run >= limits.collapse_tokens,
            alarm_raised=alarm_onset is not None,
            alarm_onset=alarm_onset,
            alarm_signal=alarm_signal,
        )

    def _forget(self, sequence: Sequence, complete: bool) -> None:
        del self._live[sequence.key]
        if sequence.outcome is None:
            self._left(sequence.admitted.model)
        self._pending.pop(sequence.key, None)
        self._windows.close(sequence)
        self._reported[sequence.key] = complete
        if len(self._reported) > _REMEMBERED:
            del self._reported[next(iter(self._reported))]

    def _assess(self, summary: Features, health: Health, admitted: Admitted) -> Risk:
        try:
            return self._risk.assess(summary, health, admitted)
        except Exception:
            self._drop(1, "risk", "fault")
            swallow("the risk model")
            return Risk(score=None, level="unknown")

    def _find_loop(self, sequence: Sequence, tails: Tails, i: int) -> tuple[tuple[int, int] | None, bool]:
        """Period and onset of the output's loop, if any; and whether the tokens folded are the client's.

        The client's tokens are what counts. Where the live detector has seen the same ones, it only goes on.
        """
        tokens, folded = sequence.tokens, tails.first[i]
        state, least_span = self._windows.loop_state(sequence), self._thresholds.loop_tokens
        if tokens is None:
            detector = loops.LoopDetector(state.copy(), folded, least_span)
            detector.update(tails.tokens[i, : tails.last[i] - folded])
            return (detector.period, detector.onset or 0) if detector.period else None, True
        if folded <= len(tokens) and sequence.checksum == crc32(tokens[:folded].tobytes()):
            return loops.find(tokens, state, folded, least_span), True
        return loops.find(tokens, loops.initial(1), 0, least_span), sequence.unknown > 0 or folded > len(tokens)


def _token_array(token_ids: Tokens[int]) -> Array:
    try:
        return np.asarray(token_ids, np.int32)
    except (OverflowError, TypeError, ValueError):  # no tokens that we know; their number still counts
        return np.full(len(token_ids), -1, np.int32)


def _batches(sequences: dict[int, Sequence]) -> Iterator[list[Sequence]]:
    """The sequences as they are now, :data:`_BATCH` at a time."""
    waiting = list(sequences.values())
    for at in range(0, len(waiting), _BATCH):
        yield waiting[at : at + _BATCH]
