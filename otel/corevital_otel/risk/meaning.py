"""Scores and flags of one request in words, for the command line and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from corevital.supported import stopped_by
from corevital.text import printable
from corevital_otel import conventions as names

_BASES: Final = {
    "prior": "From the shipped default: not calibrated on this model, not a probability.",
    "baseline": "From its rank among this model's recent requests: not a probability.",
    "calibrated": "About {score:.0%} of the runs with this score were bad where the profile was fitted.",
}
"""The meaning of a score, by basis."""
_FLAGS: Final = {
    "nan_detected": "NaN among the logits: the model or its weights are broken",
    "inf_detected": "+Inf among the logits: the model overflowed",
    "sustained_high_entropy": "sustained high entropy: the model was unsure for a long stretch",
    "distribution_collapsed": "distribution collapsed: the same at every step",
    "traffic_shifted": "traffic shifted: this model's requests differ from its earlier ones",
    "truncated": "truncated: the length limit ended the answer",
}
_SHOWN: Final = 1000
"""Characters of a value of others."""


def meaning(score: float | None, basis: str) -> str:
    """What a score means."""
    if score is None:
        return "No score: too few tokens."
    return _BASES[basis].format(score=score) if basis in _BASES else f"A score of basis {basis}."


def explanation(score: float | None, basis: str, factors: Sequence[str]) -> str:
    """What a score means and what raised it."""
    if score is None:
        return meaning(score, basis)
    reasons = f"{', '.join(factors[:-1])} and {factors[-1]}" if len(factors) > 1 else "".join(factors)
    because = f"Raised by: {reasons}." if reasons else "No signal stands out."
    return f"{meaning(score, basis)} {because}"


def stopped(summary: Mapping[str, Any]) -> str:
    """The stop reason, such as ``corevital:loop``, of a sequence that corevital ended early; "" for any other."""
    reason = summary.get(names.STOP_REASON)
    return str(reason) if stopped_by(reason) else ""


def flag_text(flag: str, summary: Mapping[str, Any]) -> str:
    """A flag in words, with the places that the attributes of its span have."""

    def found(name: str) -> str:
        return printable(summary.get(name, "unknown"), _SHOWN)

    if flag == "repetition_loop_detected":
        onset, period = found(names.LOOP_ONSET), found(names.LOOP_PERIOD)
        repeat = "the same token repeats" if period == "1" else f"the same {period} tokens repeat"
        return f"repetition loop: from token {onset} on, {repeat}"
    if flag == "template_detected":
        onset, period = found(names.TEMPLATE_ONSET), found(names.TEMPLATE_PERIOD)
        return f"template: from token {onset} on, a structure of {period} tokens repeats"
    if flag == "alarm_raised":
        signal, onset = found(names.ALARM_SIGNAL), found(names.ALARM_ONSET)
        return f"alarm: from token {onset} on, {signal} was beyond the range of good runs"
    return _FLAGS.get(flag, printable(flag, _SHOWN))


def short_flag(flag: str) -> str:
    """A flag's name as tables print it: ``loop`` for ``repetition_loop_detected``."""
    return flag.removesuffix("_detected").replace("repetition_", "")
