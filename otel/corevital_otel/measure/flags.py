"""The flags of a sequence that has ended, but for that of the traffic around it."""

from __future__ import annotations

from typing import Final

from corevital.frames.lifecycle import Admitted, Finished
from corevital.supported import stopped_by
from corevital_otel.measure import features
from corevital_otel.measure.kept import Tails
from corevital_otel.measure.loops import Repetition
from corevital_otel.measure.thresholds import Thresholds
from corevital_otel.report import Assessed, Health

_ASKED_FOR: Final = 1024
"""Tokens of the longest repetition that a user may have asked for."""


def judge(
    admitted: Admitted,
    outcome: Finished,
    tails: Tails,
    i: int,
    repetition: Repetition | None,
    limits: Thresholds,
    assessed: Assessed | None = None,
) -> Health:
    """The flags of a sequence, the ``i``-th of the tails.

    Only the logits of a sequence with a role can be wrong: nobody reads its one token.

    Args:
        admitted: its start.
        outcome: its end.
        repetition: the loop or template in its tokens. One of :data:`_ASKED_FOR` tokens at most in an output that ended
            by itself is not a loop: it was asked for.
        limits: thresholds of the flags.
        assessed: the part that the risk is of, and so the alarm.
    """
    found = tails.features[i]
    loop = template = None
    if repetition is not None:
        ended_itself = outcome.reason == "stop" and stopped_by(outcome.core.stop_reason) is None
        asked_for = ended_itself and repetition.end - repetition.onset <= _ASKED_FOR
        loop, template = (repetition, None) if repetition.loop and not asked_for else (None, repetition)
    alarm_signal, alarm_onset = None, None
    if limits.alarm is not None and admitted.role is None:
        alarm_signal, watch = limits.alarm
        if assessed is not None:
            alarm_onset = assessed.alarm_onset
        elif tails.alarmed_at[i] >= 0:
            alarm_onset = tails.alarmed_at[i]
        elif features.final_peak(found, watch.peak) > watch.threshold:
            alarm_onset = max(tails.last[i] - 1, 0)
    return Health(
        nan_detected=tails.nan[i],
        inf_detected=tails.inf[i],
        repetition_loop_detected=loop is not None or outcome.reason == "repetition",
        truncated=outcome.reason == "length" and admitted.role is None,
        loop_onset=loop and loop.onset,
        loop_period=loop and loop.period,
        template_detected=template is not None,
        template_onset=template and template.onset,
        template_period=template and template.period,
        sustained_high_entropy=found.high_entropy_run >= limits.high_entropy_tokens
        or (found.high_entropy_mean or 0.0) >= limits.high_entropy_bits + features.SALAD_BITS,
        distribution_collapsed=found.frozen_run >= limits.collapse_tokens,
        alarm_raised=alarm_onset is not None,
        alarm_onset=alarm_onset,
        alarm_signal=alarm_signal,
    )
