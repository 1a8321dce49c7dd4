"""The verdict on B, from all signals, flags and prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from corevital_otel.compare.fidelity import Fidelity, fidelity
from corevital_otel.compare.pairs import Samples
from corevital_otel.compare.shifts import ALPHA, LEAST, TESTS, Rate, Shift, rates, shifts
from corevital_otel.compare.signals import FAULTS, SIGNALS
from corevital_otel.store.reader import StoredReport

Verdict = Literal["same", "better", "worse", "cannot say yet"]

_JUDGED: Final = {signal.name for signal in SIGNALS if signal.sign}
_OTHER_PROMPTS: Final = 0.001
"""Below this p of a test of prompt lengths, the two sides had different traffic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison of A and B found.

    Attributes:
        verdict: on B. ``worse``: a signal or a flag is, or B answers prompts differently and nothing is better.
        reasons: why, each in words.
        requests: of A and of B.
        matched: pairs of prompts; None where prompts are not matched.
        left_out: requests of both sides without a partner, or with a prompt that is there more often.
        requests_needed: requests of each side with which the intervals would be narrow enough; None where more traffic
            alone would not do, or is not needed.
        signals, flags, fidelity: what it rests on; ``fidelity`` is None where no prompt can be used.
    """

    verdict: Verdict
    reasons: list[str]
    requests: tuple[int, int]
    matched: int | None
    left_out: int
    requests_needed: int | None
    signals: list[Shift]
    flags: list[Rate]
    fidelity: Fidelity | None

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def compare(a: Sequence[StoredReport], b: Sequence[StoredReport], *, exact: bool = False) -> Comparison:
    """Compare two samples of requests.

    Args:
        a, b: the reference, and what is judged; each newest first, at least one.
        exact: both compute in float32 on a CPU: see :func:`corevital_otel.compare.fidelity.fidelity`.
    """
    samples = Samples.of(a, b)
    signals, flags = shifts(samples), rates(samples)
    answers = fidelity(samples, exact=exact) if samples.matched else None
    judged = [shift for shift in signals if shift.signal in _JUDGED]
    foreign = not samples.matched and _other_prompts(a, b)
    faults = [rate for rate in flags if rate.flag in FAULTS]
    trusted = [rate for rate in faults if not foreign or rate.flag in ("nan_detected", "inf_detected")]
    differ = answers is not None and answers.prompts >= LEAST / 2 and answers.p * TESTS < ALPHA
    reasons = [f"{rate.flag} in {rate.b:.1%} of B, {rate.a:.1%} of A" for rate in trusted if _decides(rate)]
    if not foreign:
        reasons += [f"{one.signal} {one.shift:+.4g} {one.unit}".strip() for one in judged if _decides(one)]
    changes = {rate.change for rate in trusted} | {one.change for one in judged if not foreign}
    needed = None
    verdict: Verdict
    if differ and answers is not None:
        reasons.append(f"{answers.differ} of {answers.prompts} prompts at temperature 0 are answered differently")
    if "worse" in changes or (differ and "better" not in changes):
        verdict = "worse"
    elif "better" in changes:
        verdict = "better"
    elif foreign:
        verdict, reasons = "cannot say yet", ["the prompts of A and B have different lengths: send both the same"]
    elif judged and changes == {"same"}:
        verdict = "same"
    else:
        verdict = "cannot say yet"
        if judged and {one.change for one in judged} == {"same"}:  # only a flag is open
            unclear = [rate for rate in trusted if rate.change == "cannot say yet"]
            reasons = [f"{rate.flag} in {rate.b:.1%} of B, {rate.a:.1%} of A: perhaps by chance" for rate in unclear]
        else:
            needed = _needed(samples, judged, min(len(a), len(b)))
            reasons = ["too few requests"] if needed else ["no signal is known on both sides"]
    return Comparison(
        verdict=verdict,
        reasons=reasons,
        requests=(len(a), len(b)),
        matched=len(samples.a) if samples.matched else None,
        left_out=samples.left_out,
        requests_needed=needed,
        signals=signals,
        flags=flags,
        fidelity=answers,
    )


def _decides(one: Shift | Rate) -> bool:
    return one.change in ("worse", "better")


def _other_prompts(a: Sequence[StoredReport], b: Sequence[StoredReport]) -> bool:
    from scipy import stats  # type: ignore[import-untyped]

    if len(a) == len(b) == 1:  # the test's approximation divides by zero
        return False
    lengths = ([report.prompt_tokens for report in side] for side in (a, b))
    return bool(stats.ks_2samp(*lengths, method="asymp").pvalue < _OTHER_PROMPTS)


def _needed(samples: Samples, judged: Sequence[Shift], requests: int) -> int | None:
    """Requests of each side with which every interval of a shift of zero would be narrow enough to say ``same``."""
    if not judged:
        return None
    least = LEAST / min(len(samples.a), len(samples.b))
    wider = [one.needed or 0.0 for one in judged if one.change == "cannot say yet"]
    return math.ceil(requests * max([least, *wider]))
