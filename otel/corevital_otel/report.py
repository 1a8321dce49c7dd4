"""The finished record of one sequence: what every output (span, store, metrics) is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel import conventions as names

if TYPE_CHECKING:  # measuring needs no OpenTelemetry
    from opentelemetry.trace import SpanContext

FloatArray = npt.NDArray[np.float32]
RiskLevel = Literal["low", "medium", "high", "unknown"]
RiskBasis = Literal["prior", "baseline", "calibrated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Per-token values, one entry an output token, float32; NaN where a value is not known.

    A forced token has what the mask left: entropy and surprisal 0, margin and mass 1.

    Attributes:
        entropy: bits.
        surprisal: bits, of the token really sampled.
        margin: p1 - p2.
        topk_mass: probability of the 10 likeliest tokens.
    """

    entropy: FloatArray
    surprisal: FloatArray
    margin: FloatArray
    topk_mass: FloatArray

    def __len__(self) -> int:
        return len(self.entropy)


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The likeliest tokens at each place of an output, the likeliest first.

    Attributes:
        ids: ``[T, k]`` int32, negative where not known.
        logprobs: ``[T, k]`` float32, nats.
    """

    ids: npt.NDArray[np.int32]
    logprobs: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Summary of a sequence's tokens. ``None`` where no token allows it. Entropies and surprisals in bits.

    Attributes:
        tokens: tokens observed.
        entropy_mean, entropy_max, entropy_std, entropy_slope, entropy_sum: of the per-token entropy; the slope is the
            least-squares one, bits a token.
        entropy_early, entropy_change: mean over the first :data:`corevital_otel.measure.features.GROUP` tokens, and by
            how much the mean over the last ones is above it.
        entropy_group_max: highest mean over a sliding group of so many tokens, at least twelve of them known; a forced
            token counts as 0. That of an output with fewer known tokens than a group is their mean.
        entropy_rebound: how far the mean over a group rose above the lowest such mean before it.
        entropy_bursts: tokens whose entropy is 2 bits or more above that of the token before.
        surprisal_mean, surprisal_max, surprisal_std, surprisal_sum, surprisal_early: of the tokens really sampled.
        perplexity: 2 ** surprisal_mean.
        margin_mean, margin_min, margin_early: p1 - p2.
        margin_close_share: share of tokens where that is below 0.1.
        topk_mass_mean: probability of the 10 likeliest tokens.
        confidence_mean, confidence_min: minus the mean log-probability (nats) of the 20 likeliest tokens: its mean,
            and its lowest mean over a sliding group of tokens (DeepConf's group confidence), at least twelve of them
            known and not forced.
        confidence_early, confidence_tail, confidence_change: its mean over the first and the last group, and the latter
            minus the former.
        high_entropy_steps: tokens whose entropy was above the threshold.
        high_entropy_run: the longest run of them; each other token subtracts two.
        high_entropy_mean: the highest mean entropy of 64 successive tokens; None where there are fewer.
        repetition_share: the largest share of repeated tokens (:func:`corevital_otel.measure.loops.repeated_at`) among
            128 successive ones, of all where there are fewer.
        frozen_run: the most successive tokens whose distribution was that of the token before: the same likeliest
            token, and the same entropy to 0.01 bits.
        surprisal_estimated: tokens whose surprisal is an estimate (out of the top-k table of a row that could not be
            read exactly).
        forced: tokens that were the only ones allowed, by a grammar as a rule. They are among ``tokens`` and count
            nowhere else, but as 0 in the groups of ``entropy_group_max`` and ``entropy_rebound``: no other entropy,
            surprisal, margin, mass or confidence is of them.
    """

    tokens: int = 0
    entropy_mean: float | None = None
    entropy_max: float | None = None
    entropy_std: float | None = None
    entropy_slope: float | None = None
    entropy_sum: float | None = None
    entropy_early: float | None = None
    entropy_change: float | None = None
    entropy_group_max: float | None = None
    entropy_rebound: float | None = None
    entropy_bursts: int = 0
    surprisal_mean: float | None = None
    surprisal_max: float | None = None
    surprisal_std: float | None = None
    surprisal_sum: float | None = None
    surprisal_early: float | None = None
    perplexity: float | None = None
    margin_mean: float | None = None
    margin_min: float | None = None
    margin_early: float | None = None
    margin_close_share: float | None = None
    topk_mass_mean: float | None = None
    confidence_mean: float | None = None
    confidence_min: float | None = None
    confidence_early: float | None = None
    confidence_tail: float | None = None
    confidence_change: float | None = None
    high_entropy_steps: int = 0
    high_entropy_run: int = 0
    high_entropy_mean: float | None = None
    frozen_run: int = 0
    surprisal_estimated: int = 0
    forced: int = 0
    repetition_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """The part of an output that its risk is of.

    Attributes:
        segment: ``answer`` or ``tool_call``.
        features: of its tokens; ``tokens`` are those whose values were kept.
        alarm_onset: output index at which the watched maximum crossed its threshold within the part.
    """

    segment: str
    features: Features
    alarm_onset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of an output.

    Attributes:
        tokens: all that it has.
        entropy_mean, surprisal_mean: bits, over those whose values were kept and that were not forced; None where there
            are none.
    """

    tokens: int = 0
    entropy_mean: float | None = None
    surprisal_mean: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """The parts of an output whose engine knows them (:mod:`corevital_otel.measure.segments`).

    Attributes:
        reasoning, answer, tool_call: None where the output has no such part.
        assessed: the part that the risk is of; None: the whole output.
    """

    reasoning: Part | None = None
    answer: Part | None = None
    tool_call: Part | None = None
    assessed: Assessed | None = None


_FLAGS = (*names.FLAGS, *names.CONDITIONS)
_flags = attrgetter(*_FLAGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What is wrong: one flag each, never part of the score.

    Attributes:
        nan_detected, inf_detected: a NaN or +Inf among the logits of some step.
        repetition_loop_detected: the output ran into a loop; ``loop_onset`` is the output index where the repeating
            part begins, ``loop_period`` its length in tokens.
        template_detected: its structure repeats and parts of it change, or it repeated and ended by itself; likewise
            ``template_onset`` and ``template_period``.
        truncated: the length limit ended the output.
        sustained_high_entropy: the model was guessing for a long stretch.
        distribution_collapsed: it gave the same distribution step after step.
        traffic_shifted: this model's requests differ from its earlier ones (:mod:`corevital_otel.risk.baseline`).
        alarm_raised: the watched maximum crossed its threshold, at output index ``alarm_onset``; ``alarm_signal`` is
            what was watched, None where nothing was.
    """

    nan_detected: bool = False
    inf_detected: bool = False
    repetition_loop_detected: bool = False
    truncated: bool = False
    loop_onset: int | None = None
    loop_period: int | None = None
    template_detected: bool = False
    template_onset: int | None = None
    template_period: int | None = None
    sustained_high_entropy: bool = False
    distribution_collapsed: bool = False
    traffic_shifted: bool = False
    alarm_raised: bool = False
    alarm_onset: int | None = None
    alarm_signal: str | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the flags that are up, the contract's first."""
        return tuple([name for name, is_up in zip(_FLAGS, _flags(self), strict=True) if is_up])

    @property
    def loud_flags(self) -> tuple[str, ...]:
        """Of those, the ones that keep a request and its series."""
        return tuple([name for name in self.flags if name not in names.QUIET])

    @property
    def fault_flags(self) -> tuple[str, ...]:
        """Of those, the fault flags: the ones that mean that this output is bad."""
        return tuple(name for name in self.flags if name not in names.HARMLESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """How likely the output is bad, and how that was obtained.

    Attributes:
        score: 0 to 1; None where too few tokens allow no score.
        level: ``low``, ``medium``, ``high`` (from ``COREVITAL_RISK_THRESHOLD`` on) or ``unknown``.
        basis: what the score rests on.
        factors: what raised it, strongest first, each readable by a person.
        shifted: current traffic differs from the traffic it was compared with.
    """

    score: float | None
    level: RiskLevel
    basis: RiskBasis = "prior"
    factors: tuple[str, ...] = ()
    shifted: bool = False


class RiskModel(Protocol):
    """Assesses ended sequences; :mod:`corevital_otel.risk` has the bases."""

    def assess(self, features: Features, health: Health, admitted: Admitted) -> Risk:
        """Risk of a sequence. ``score`` is None and the level ``unknown`` where too few tokens allow no score."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What is decided of a sequence at its admission; see :mod:`corevital_otel.sampling`.

    Attributes:
        parent: the caller's span, or None: the sequence's span is a root.
        drawn: the sequence is always kept.
        exported: its span may be exported; a caller that does not sample its trace forbids it.
        key: of a sequence that an engine core reports: its span's ids are derived from it, so that a sequence that is
            reported twice, after a lost answer, is the same span and row.
        on_report: called with the report in the hub's thread, where the caller waits for the verdict.
    """

    parent: SpanContext | None = None
    drawn: bool = True
    exported: bool = True
    key: int | None = None
    on_report: Callable[[RequestReport], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReport:
    """One sequence, whole.

    Attributes:
        admitted, outcome: what the frontend knew at its start and end.
        features, health, risk: what its tokens say.
        series: per-token values where the capture mode keeps them, else None.
        capture: the capture mode that applied.
        incomplete: not every returned token was observed.
        runner, stage: the model runner, and which logits it showed (``raw``, ``post_penalty`` …).
        admission: its parent, and what was decided when it was admitted.
        counted: of its tokens, those counted while it ran.
        segments: its parts, where the engine knows them.
        likeliest: the likeliest tokens at its first places, where content is stored of this sequence.
    """

    admitted: Admitted
    outcome: Finished
    features: Features
    health: Health
    risk: Risk
    series: Series | None = None
    capture: str = "on_risk"
    incomplete: bool = False
    runner: str = "unknown"
    stage: str = "unknown"
    admission: Admission = Admission()
    counted: int = 0
    segments: Segments | None = None
    likeliest: Likeliest | None = None
