"""The report of a sequence that has ended, from its window's tail, what was kept of it, and its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from corevital.frames.lifecycle import Admitted, Finished
from corevital.guard import swallow
from corevital_otel.losses import Loss, LossCounter
from corevital_otel.measure import capture, flags, kept, loops, segments
from corevital_otel.measure.kept import Tails
from corevital_otel.measure.live import LiveSequence
from corevital_otel.measure.thresholds import Thresholds
from corevital_otel.measure.token_values import COLUMNS
from corevital_otel.measure.windows import Windows
from corevital_otel.report import Features, Health, RequestReport, Risk, RiskModel, Segments

Array = npt.NDArray[Any]


class ReportMaker:
    """Makes reports; changes neither sequences nor windows.

    Args:
        windows: those of the sequences.
        thresholds: of the flags.
        risk: the risk model.
        counters: where losses are counted.
        max_series_tokens, likeliest_tokens: see :class:`corevital_otel.measure.assembler.Assembler`.
        wall_ns: wall clock, for sequences that never ended.
    """

    def __init__(
        self,
        windows: Windows,
        thresholds: Thresholds,
        risk: RiskModel,
        counters: LossCounter,
        max_series_tokens: int,
        likeliest_tokens: int,
        wall_ns: Callable[[], int],
    ) -> None:
        self._windows = windows
        self._thresholds = thresholds
        self._risk = risk
        self._count_loss = counters.count_loss
        self._max_series_tokens = max_series_tokens
        self._likeliest_tokens = likeliest_tokens
        self._wall_ns = wall_ns

    def make(self, sequence: LiveSequence, tails: Tails, i: int, parts: Segments | None) -> RequestReport:
        """The report of a sequence, the ``i``-th of the tails."""
        outcome = sequence.outcome or Finished(reason="abort", token_ids=(), end_ns=self._wall_ns())
        if sequence.facts is not None:
            outcome = replace(outcome, core=sequence.facts.over(outcome.core))
        length = tails.last[i] if sequence.tokens is None else len(sequence.tokens)
        summary = tails.features[i]
        if sequence.tokens is not None:
            self._count_loss(Loss.RECORD_MISSING, max(length - summary.tokens, 0))
        tokens, before, agrees = self._tokens(sequence, tails, i)
        if not agrees:
            self._count_loss(Loss.SEQUENCE_OTHER_TOKENS)
        lags = loops.repeated_at(tokens)
        summary = replace(summary, repetition_share=loops.share(lags))
        found = loops.find(tokens, self._thresholds.loop_tokens, cut_off=outcome.reason == "length", lags=lags)
        if found is not None:
            found = found._replace(onset=found.onset + before)
        assessed = None if parts is None else parts.assessed
        health = flags.judge(sequence.admitted, outcome, tails, i, found, self._thresholds, assessed)
        risk = self._assess(assessed.features if assessed else summary, health, sequence.admitted)
        series = None
        if capture.keeps(sequence.capture, risk, health):
            series = kept.series(sequence, tails, i, min(length, self._max_series_tokens)) if length else None
            self._count_loss(Loss.SERIES_TOO_LONG, max(length - self._max_series_tokens, 0))
        likeliest = None
        if self._likeliest_tokens and capture.is_marked(risk, health):
            likeliest = kept.likeliest(sequence, tails, i, min(length, self._likeliest_tokens))
        source = sequence.source or sequence.admitted  # without records: what the frontend knows
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
            runner=source.runner,
            stage=source.stage,
            admission=sequence.admission,
            counted=sequence.counted,
            segments=parts,
            likeliest=likeliest,
        )

    def segments(self, tails: Tails, sequences: list[tuple[int, LiveSequence]]) -> dict[int, Segments]:
        """The parts of the sequences whose end names them and whose values were kept, by their places in the tails."""
        outputs = {}
        for i, sequence in sequences:
            outcome, tokens = sequence.outcome, sequence.tokens
            if outcome is None or not outcome.segments or tokens is None or sequence.columns != COLUMNS:
                continue
            values = kept.values(sequence, tails, i, COLUMNS, min(len(tokens), self._max_series_tokens))
            outputs[i] = segments.Output(outcome.segments, values, tokens)
        if not outputs:
            return {}
        limits = self._thresholds
        found = segments.measure([*outputs.values()], limits.high_entropy_bits, limits.alarm and limits.alarm[1])
        return dict(zip(outputs, found, strict=True))

    def _assess(self, summary: Features, health: Health, admitted: Admitted) -> Risk:
        if admitted.role is not None:  # no basis is about such sequences, nor may a baseline learn from them
            return Risk(score=None, level="unknown")
        try:
            return self._risk.assess(summary, health, admitted)
        except Exception:
            self._count_loss(Loss.RISK_FAULT)
            swallow("the risk model")
            return Risk(score=None, level="unknown")

    def _tokens(self, sequence: LiveSequence, tails: Tails, i: int) -> tuple[Array, int, bool]:
        """The output's tokens; how many are missing before them; and whether the tokens folded are the client's.

        The client's tokens are what counts. Of a sequence without any, the last ones are known.
        """
        tokens, folded = sequence.tokens, tails.first[i]
        if tokens is None:
            last = self._windows.last_folded(sequence)
            rest = tails.tokens[i, : tails.last[i] - folded]
            return np.concatenate((last, rest)), folded - len(last), True
        if folded <= len(tokens) and sequence.checksum == crc32(tokens[:folded].tobytes()):
            return tokens, 0, True
        return tokens, 0, sequence.unknown > 0 or folded > len(tokens)
