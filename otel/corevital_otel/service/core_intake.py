"""Takes in the events of engine cores, as the hub does those of its own frontend. Not thread-safe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from opentelemetry.context import Context

from corevital.frames.events import CoreInfo
from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital_otel.measure.assembler import Assembler
from corevital_otel.sampling import Sampler
from corevital_otel.service.intake import Intake
from corevital_otel.service.stop_strings import StopStrings
from corevital_otel.spans.posted import PostedSpan

_TOKENIZERS: Final = 16
"""Tokenizers that are kept, for the models of all engines of this hub."""

_EARLY: Final = 1024
"""Facts that are kept of sequences without an admission, most of which were reported already."""


class CoreIntake:
    """Implements :class:`corevital_otel.service.cores.Listener`.

    Args:
        assembler, intake, sampler: the hub's.
        content: text may leave the process.
        internal, unobserved: the hub's counts.
        later: makes the hub run a function after the events that its own frontend has queued so far.
        span: takes in the span of a request over HTTP.
    """

    def __init__(
        self,
        assembler: Assembler,
        intake: Intake,
        sampler: Sampler,
        content: bool,
        internal: Callable[[str], None],
        unobserved: Callable[[int], None],
        later: Callable[[Callable[[], None]], None],
        span: Callable[[PostedSpan], None],
    ) -> None:
        self._assembler = assembler
        self._intake = intake
        self._sampler = sampler
        self._content = content
        self._tokenizers: dict[tuple[str, str | None], StopStrings] = {}
        self._later = later
        self.internal = internal
        self.unobserved = unobserved
        self.span = span
        self._early: dict[int, CoreFacts] = {}  # of sequences that may still be admitted

    def admits(self, key: int, request: Admitted) -> None:
        """A sequence arrives; the parent of its span is the one that the request names."""
        kept = self._intake.admitted(request)
        self._assembler.admit(key, kept, replace(self._sampler.admit(kept, Context()), key=key))
        early = self._early.pop(key, None)
        if early is not None:
            self._assembler.facts(key, early)

    def finishes(self, key: int, outcome: Finished, core: CoreInfo) -> None:
        """It has ended. Its text, and a stop string in it, are found here, because the core has only tokens."""
        if outcome.stop_rule is not None:
            outcome = self._texts(core).resolve(outcome, outcome.stop_rule)
        if self._content and outcome.text is None and core.tokenizer:
            outcome = replace(outcome, text=self._texts(core).decode_text(outcome.token_ids))
        if core.tokenizer:
            outcome = replace(outcome, tokenizer=(core.tokenizer, core.revision))
        kept = self._intake.finished(outcome)
        if not self._assembler.finish(key, kept):
            self._intake.release(kept.text)

    def facts(self, key: int, facts: CoreFacts) -> None:
        """What the core knows of a frontend's sequence, whose admission may be queued, or still on its way here."""
        self._later(lambda: self._facts(key, facts))

    def _facts(self, key: int, facts: CoreFacts) -> None:
        if not self._assembler.knows([key]):
            self._early[key] = facts.bounded()
            if len(self._early) > _EARLY:
                del self._early[next(iter(self._early))]
        self._assembler.facts(key, facts)

    def is_gone(self, key: int) -> None:
        """Its core is gone."""
        self._assembler.abandon(key)

    def _texts(self, core: CoreInfo) -> StopStrings:
        name = core.tokenizer, core.revision
        if name not in self._tokenizers:
            if len(self._tokenizers) >= _TOKENIZERS:
                self._tokenizers.clear()
            self._tokenizers[name] = StopStrings(*name, self._content)
        return self._tokenizers[name]
