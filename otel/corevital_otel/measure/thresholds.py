"""From where on what is seen is a flag: one record of the settings that the assembler needs."""

from __future__ import annotations

from dataclasses import dataclass

from corevital_otel.measure import features, loops


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Defaults are those of the settings.

    Attributes:
        high_entropy_bits: of ``high_entropy_steps``.
        high_entropy_tokens: the run of them that is ``sustained_high_entropy``.
        collapse_tokens: the run of equal distributions that is ``distribution_collapsed``.
        loop_tokens: matching tokens that a loop has at least.
        alarm: the signal watched while a sequence runs, and what to watch of the features' state; None: nothing.
    """

    high_entropy_bits: float = features.HIGH_ENTROPY_BITS
    high_entropy_tokens: int = 64
    collapse_tokens: int = 64
    loop_tokens: int = loops.LEAST_SPAN
    alarm: tuple[str, features.Watch] | None = None
