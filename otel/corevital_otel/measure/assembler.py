"""From frames and lifecycle events to reports: exactly one for each admitted sequence.

Single-threaded: one thread makes all calls. Nothing here waits. Ended sequences wait for
:meth:`Assembler.tick`, called once per turn, which measures and reports together those whose records are all there:
most of a report's cost is the same for one sequence and for many. A sequence that waits for late records has a
deadline.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital.frames.layout import Frame, Source
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital.guard import swallow
from corevital.supported import CaptureMode
from corevital_otel.losses import Loss, LossCounter
from corevital_otel.measure import capture
from corevital_otel.measure.kept import SERIES
from corevital_otel.measure.live import LiveSequence
from corevital_otel.measure.report_maker import ReportMaker
from corevital_otel.measure.thresholds import Thresholds
from corevital_otel.measure.token_values import COLUMNS, ids
from corevital_otel.measure.windows import Windows
from corevital_otel.report import Admission, RequestReport, RiskModel

Array = npt.NDArray[Any]

_REMEMBERED: Final = 4096
"""Reported sequences that are still recognised, so that their surplus records do not count as unknown."""

_BATCH: Final = 64
"""Sequences measured together at most, to bound memory; more would hardly be cheaper."""

_ROOT: Final = Admission()


class Assembler:
    """Assembles one report for each admitted sequence, in any order of its records and its end.

    A sequence is complete when a row has come for each token its client got; surplus rows (asynchronous scheduling,
    drafts) are trimmed. One that is not complete ``wait_s`` after its end is reported as incomplete.

    Args:
        on_report: receives each finished report, on the calling thread.
        counters: where losses are counted.
        risk: the risk model.
        capture: the server's; see :mod:`corevital_otel.measure.capture`.
        wait_s: longest wait for records after a sequence's end.
        surprisal_wait_s: longest wait, of that, where only a token's log-probability is still to come.
        facts_wait_s: longest wait where only the facts of the engine's core are still to come. There is none until the
            core has sent facts of some sequence, but for the first ``facts_expected`` ones.
        facts_expected: sequences whose facts are waited for even if none have come so far.
        thresholds: of the flags.
        max_live: sequences that may be live at once; beyond it the oldest is reported as incomplete.
        max_windows: of those, sequences with records, which need more memory (see :class:`Windows`).
        max_series_tokens: tokens kept of a series at most; those beyond are counted, and the series is that much
            shorter than the output.
        likeliest_tokens: tokens at the beginning of an output, of which the likeliest alternatives are kept.
        clock: the clock of ``tick`` and ``close``, by which sequences are given up. It must stop while records are
            known to be unread.
        wall_ns: wall clock, for sequences that never ended.
    """

    def __init__(
        self,
        on_report: Callable[[RequestReport], None],
        counters: LossCounter,
        *,
        risk: RiskModel,
        capture: CaptureMode = "on_risk",
        wait_s: float = 5.0,
        surprisal_wait_s: float = 0.25,
        facts_wait_s: float = 1.0,
        facts_expected: int = 0,
        thresholds: Thresholds | None = None,
        max_live: int = 100_000,
        max_windows: int = 16_384,
        max_series_tokens: int = 32_768,
        likeliest_tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._on_report = on_report
        self._count_loss = counters.count_loss
        self._capture = capture
        self._wait_s = wait_s
        self._surprisal_wait_s = min(surprisal_wait_s, wait_s)
        self._facts_wait_s = min(facts_wait_s, wait_s)
        self._facts_expected: float = facts_expected
        self._max_live = max_live
        self._max_windows = max_windows
        self._clock = clock
        self._wall_ns = wall_ns
        thresholds = thresholds or Thresholds()
        self._windows = Windows(thresholds, max_series_tokens, likeliest_tokens)
        self._reports = ReportMaker(
            self._windows, thresholds, risk, counters, max_series_tokens, likeliest_tokens, wall_ns
        )
        self._live: dict[int, LiveSequence] = {}  # oldest first
        self._ids: Counter[str] = Counter()  # of their requests
        self._pending: dict[int, LiveSequence] = {}  # ended ones to look at: new, with new records, or due
        self._deadlines: list[tuple[float, int, LiveSequence]] = []  # a heap; may hold sequences reported since
        self._order = count()
        self._running: Counter[str] = Counter()
        self._reported: dict[int, bool] = {}  # the last ones: key -> complete

    @property
    def running(self) -> int:
        """Sequences admitted and not reported yet."""
        return len(self._live)

    def runs(self, request_id: str) -> bool:
        """Whether one of them is of this request, by the client's id. Any thread may ask."""
        return request_id in self._ids

    @property
    def ended(self) -> set[int]:
        """Keys of those that have ended and still wait for records."""
        return {key for key, sequence in self._live.items() if sequence.outcome is not None}

    @property
    def looping(self) -> int:
        """Of those, the ones that were in a repetition loop when last checked, up to 64 tokens ago."""
        return self._windows.looping

    @property
    def running_by_model(self) -> dict[str, int]:
        """Sequences in the engine now, by model; one that has ended is not among them, reported or not."""
        return dict(self._running)

    @property
    def looping_by_model(self) -> dict[str, int]:
        """Of those, the ones in a repetition loop when last checked."""
        return self._windows.looping_by_model()

    @property
    def alarmed_by_model(self) -> dict[str, int]:
        """Of those, the ones whose alarm is raised."""
        return self._windows.alarmed_by_model()

    def alarmed(self) -> list[int]:
        """Keys of the running sequences whose alarm is raised, up to 72 tokens ago."""
        return self._windows.alarmed()

    def fresh_tokens(self) -> dict[str, int]:
        """Tokens observed of running sequences since the last call, by model; a report counts the rest."""
        fresh = dict(self._windows.fresh)
        self._windows.fresh.clear()
        return fresh

    def admit(self, key: int, admitted: Admitted, admission: Admission = _ROOT) -> None:
        """A sequence comes in.

        Args:
            key: its stamp's key.
            admitted: what the frontend knows of it.
            admission: what was decided of it; passed on to the report.
        """
        if key in self._live:
            self._count_loss(Loss.SEQUENCE_DUPLICATE_KEY)
            return
        if len(self._live) >= self._max_live:
            self._report_pending(self._clock())
        while len(self._live) >= self._max_live:
            self._evict(next(iter(self._live.values())))
        mode = capture.mode_of(admitted.capture, self._capture)
        columns = COLUMNS if admitted.segmented else len(SERIES) if capture.collects(mode) else 0
        self._live[key] = LiveSequence(key, admitted, admission, mode, columns)
        self._ids[admitted.known_id] += 1
        self._running[admitted.model] += 1

    @np.errstate(all="ignore")  # a broken worker's values may be anything
    def frame(self, frame: Frame) -> None:
        """Take in a frame's records."""
        for records, put in ((frame.rows, self._windows.put_rows), (frame.sampled, self._windows.put_sampled)):
            if not len(records):
                continue
            slots = self._slots(records["key"].tolist(), frame.source)
            known = slots >= 0
            late, wild = put(slots, records) if known.all() else put(slots := slots[known], records[known])
            self._count_loss(Loss.RECORD_LATE, late)
            self._count_loss(Loss.RECORD_INDEX_OUT_OF_RANGE, wild)
            for sequence in self._windows.ended(slots):
                self._pending[sequence.key] = sequence

    def finish(self, key: int, outcome: Finished) -> bool:
        """A sequence has ended. If it is complete, the next :meth:`tick` at the latest reports it.

        Returns:
            Whether it was running; if not, the end is counted as lost and ignored.
        """
        sequence = self._live.get(key)
        if sequence is None:
            self._count_loss(Loss.FINISH_ALREADY_REPORTED if key in self._reported else Loss.FINISH_UNKNOWN_SEQUENCE)
            return False
        if sequence.outcome is not None:
            self._count_loss(Loss.FINISH_DUPLICATE)
            return False
        sequence.tokens = ids(outcome.token_ids)
        sequence.outcome = replace(outcome, token_ids=sequence.tokens.data)  # four bytes each, in place of forty
        sequence.finished_at = self._clock()
        self._left(sequence.admitted.model)
        self._windows.finished(sequence)
        self._pending[key] = sequence
        if len(self._pending) >= _BATCH:
            self._report_pending(sequence.finished_at)
        return True

    def facts(self, key: int, facts: CoreFacts) -> None:
        """What the engine's core knows of a sequence, before its end or shortly after it. Later facts add to these.

        Those of an unknown or reported sequence are ignored, and not counted as lost: its report has the frontend's.
        """
        self._facts_expected = math.inf
        if (sequence := self._live.get(key)) is not None:
            facts = facts.bounded()
            sequence.facts = facts if sequence.facts is None else facts.over(sequence.facts)
            if sequence.outcome is not None:
                self._pending[key] = sequence

    def knows(self, keys: Iterable[int]) -> bool:
        """Whether all these sequences have come in, by their keys."""
        return all(key in self._live or key in self._reported for key in keys)

    def abandon(self, key: int) -> None:
        """The engine that served a sequence has failed: report it now, with an error."""
        if (sequence := self._live.get(key)) is not None and sequence.outcome is None:
            sequence.outcome = Finished(reason="error", token_ids=(), end_ns=self._wall_ns())
            self._left(sequence.admitted.model)
            self._report([sequence])

    def forget(self, key: int) -> None:
        """Another will report a sequence: drop it without a report."""
        if (sequence := self._live.get(key)) is not None:
            self._windows.fresh[sequence.admitted.model] -= sequence.counted
            self._forget(sequence, False)

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
        self._report_pending(now)
        while self._deadlines and not self._is_live(self._deadlines[0][2]):
            heappop(self._deadlines)
        return self._deadlines[0][0] - now if self._deadlines else None

    def close(self, now: float) -> None:
        """Report everything: what is due, what still waits, and, as aborted, what has not ended."""
        self.tick(now)
        for batch in _batches(self._live):
            self._report(batch)
        self._deadlines.clear()

    def _left(self, model: str) -> None:
        """One fewer runs. Adapters can be loaded under ever new names, so a model without sequences is forgotten."""
        self._running[model] -= 1
        if not self._running[model]:
            del self._running[model]

    def _is_live(self, sequence: LiveSequence) -> bool:
        return self._live.get(sequence.key) is sequence

    def _slots(self, keys: list[int], source: Source) -> Array:
        """The window of each record's sequence, -1 for a sequence we do not know."""
        slot_of = self._windows.slot_of
        found = list(map(slot_of.get, keys))  # of all that run, at each frame: twice as fast as a comprehension
        if None in found:
            for key in [key for key, slot in zip(keys, found, strict=True) if slot is None]:
                sequence = self._live.get(key)
                if sequence is not None and sequence.slot < 0:
                    self._open(sequence, source)
            found = list(map(slot_of.get, keys))  # opening may have closed another
        if None in found:
            for key in [key for key, slot in zip(keys, found, strict=True) if slot is None]:
                self._count_unknown(key)
            return np.array([-1 if slot is None else slot for slot in found], np.int64)
        return np.array(found, np.int64)

    def _open(self, sequence: LiveSequence, source: Source) -> None:
        if len(self._windows) >= self._max_windows:
            self._report_pending(self._clock())
            if not self._is_live(sequence):
                return
        if len(self._windows) >= self._max_windows:
            self._evict(next(other for other in self._live.values() if other.slot >= 0))
        sequence.source = source
        self._windows.open(sequence)

    def _count_unknown(self, key: int) -> None:
        complete = self._reported.get(key)
        if complete is None:
            self._count_loss(Loss.RECORD_UNKNOWN_SEQUENCE)
        elif not complete:
            self._count_loss(Loss.RECORD_LATE)
        # else: surplus of a sequence whose report is whole. Asynchronous scheduling makes one a request.

    def _evict(self, sequence: LiveSequence) -> None:
        self._count_loss(Loss.SEQUENCE_TOO_MANY_LIVE)
        self._report([sequence])

    def _report_pending(self, now: float) -> None:
        """Report the pending sequences that need not wait any longer."""
        pending, self._pending = self._pending, {}
        for batch in _batches(pending):
            arrived = []
            for sequence, has_arrived in zip(batch, self._windows.arrived(batch), strict=True):
                wait_s = 0.0 if has_arrived else self._wait_s
                if self._facts_expected > 0 and sequence.facts is None:
                    wait_s = max(wait_s, self._facts_wait_s)
                if not wait_s or now >= sequence.finished_at + wait_s:
                    self._facts_expected -= sequence.facts is None
                    arrived.append(sequence)
                else:
                    self._put_deadline(sequence, wait_s)
            if arrived:
                self._report(arrived, now)

    def _put_deadline(self, sequence: LiveSequence, wait_s: float) -> None:
        deadline = sequence.finished_at + wait_s
        if deadline < sequence.deadline:
            sequence.deadline = deadline
            heappush(self._deadlines, (deadline, next(self._order), sequence))

    @np.errstate(all="ignore")
    def _report(self, sequences: list[LiveSequence], now: float = math.inf) -> None:
        """Report sequences; by a time given, those that may still wait for a token's log-probability do so.

        Each report is made, its sequence forgotten, and the report handed on: in this order, so that no error
        reports it twice.
        """
        tails = self._windows.tails(sequences)
        due = []
        for i, sequence in enumerate(sequences):
            if not tails.exact[i] and now < sequence.finished_at + self._surprisal_wait_s:
                self._put_deadline(sequence, self._surprisal_wait_s)
            else:
                due.append((i, sequence))
        parts = self._reports.segments(tails, due)
        for i, sequence in due:
            report = self._reports.make(sequence, tails, i, parts.get(i))
            self._forget(sequence, not report.incomplete)
            try:
                self._on_report(report)
            except Exception:
                self._count_loss(Loss.REPORT_FAULT)
                swallow("a report's receiver")

    def _forget(self, sequence: LiveSequence, complete: bool) -> None:
        del self._live[sequence.key]
        self._ids[known := sequence.admitted.known_id] -= 1
        if not self._ids[known]:
            del self._ids[known]
        if sequence.outcome is None:
            self._left(sequence.admitted.model)
        self._pending.pop(sequence.key, None)
        if sequence.slot >= 0:
            self._windows.close(sequence)
        self._reported[sequence.key] = complete
        if len(self._reported) > _REMEMBERED:
            del self._reported[next(iter(self._reported))]


def _batches(sequences: dict[int, LiveSequence]) -> Iterator[list[LiveSequence]]:
    """The current sequences, :data:`_BATCH` at a time."""
    waiting = list(sequences.values())
    for at in range(0, len(waiting), _BATCH):
        yield waiting[at : at + _BATCH]
