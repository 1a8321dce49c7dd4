"""In a scheduler: logits and tokens, by SGLang's own ``SamplingObserver``.

SGLang shows a step's logits without saying whose they are (:meth:`Sampling.before_grammar`), then the tokens
(:meth:`Sampling.after_sample`); and once those are committed, requests and tokens by row (:meth:`_OnHost.consume`). So
the recorder measures rows of nobody, and what it posts is kept until their owners are known.

The logits are float32, after penalties and before grammar, logit bias, custom processors and temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from corevital.engines.sglang.watch import Watch, carried
from corevital.frames.stamp import Stamp
from corevital.guard import guarded
from corevital.steps.frame_thread import FrameThread
from corevital.steps.recorder import Observed, Recorder
from corevital.steps.slots import Owners, Slots
from corevital.steps.step import Columns, SampledStep, Step

if TYPE_CHECKING:
    import torch

_NOBODY: Final = Slots(0).snapshot()
_NO_SLOT: Final = -1


class Sampling:
    """Implements ``sglang.srt.sampling.sampling_observer.SamplingObserver``.

    Args:
        watch: knows the sequences.
        frames: where steps leave.
    """

    def __init__(self, watch: Watch, frames: FrameThread) -> None:
        self._watch = watch
        self._frames = frames
        self._recorder: Recorder | None = None
        self._posted: Step | SampledStep | None = None
        self._owners: tuple[list[Stamp], Owners] = ([], _NOBODY)

    def record(self, recorder: Recorder) -> None:
        """What takes logits and tokens from here on; it posts to :meth:`keep`."""
        self._recorder = recorder

    def keep(self, phase: Step | SampledStep) -> None:
        """Keep what the recorder has just made, until its owners are known."""
        self._posted = phase

    def is_active(self, sampling_info: Any) -> bool:
        """Whether to observe this step."""
        return self._recorder is not None and self._watch.measures

    @guarded("the sampling observer's before_grammar")
    def before_grammar(self, logits: torch.Tensor, sampling_info: Any) -> Observed | None:
        """A step's logits ``[rows, vocab]``. Changes nothing in them."""
        assert self._recorder is not None  # noqa: S101 - for the types
        # SGLang turns it into probabilities, in place, unless all are greedy; a bias or a processor changes it too
        biased = getattr(sampling_info, "logit_bias", None) is not None
        changes = biased or getattr(sampling_info, "has_custom_logit_processor", False)
        stays = sampling_info.is_all_greedy and not changes
        copied, rows = logits if stays else self._recorder.copy(logits), len(logits)
        kept = logits if copied is None else copied  # a row that changes is found out: its token's value is withheld
        return self._recorder.record_logits(kept, None, list(range(rows)), [0] * rows, _NOBODY)

    @guarded("the sampling observer's after_sample")
    def after_sample(self, observed: Observed, token_ids: torch.Tensor) -> _OnDevice | None:
        """The tokens ``[rows]`` sampled from them."""
        assert self._recorder is not None  # noqa: S101 - for the types
        self._posted = None
        self._recorder.record_tokens(observed, token_ids.int())
        sampled = self._posted
        return _OnDevice(self, observed.step.rows, sampled.tokens) if isinstance(sampled, SampledStep) else None

    @guarded("the sampling observer's consume")
    def consume(self, rows: Columns, tokens: Columns, batch: Any, commits: Sequence[Any]) -> None:
        """The requests of the rows, and the tokens that they really got; None where a row was thrown away."""
        if len(commits) != rows.size:  # the rows are not one for each request
            self.lose(rows.size)
            return
        stamps: list[Stamp] = []
        slots, positions = [_NO_SLOT] * rows.size, [0] * rows.size
        for row, (req, commit) in enumerate(zip(batch.reqs, commits, strict=True)):
            stamp = carried(req)
            if commit is None or stamp is None:  # a chunk of a prompt, an ended request; one that is not measured
                continue
            if commit.output_index == 0:
                self._watch.began(req)
            slots[row], positions[row] = len(stamps), commit.output_index
            stamps.append(stamp)
        if stamps:
            step = Step(rows, (slots, positions), self._owners_of(stamps, is_whole=len(stamps) == rows.size))
            self._frames.post(step)
            self._frames.post(SampledStep(step, tokens))

    def _owners_of(self, stamps: list[Stamp], is_whole: bool) -> Owners:
        """The owners of a step's rows; the same object while they do not change, so that steps are sent together."""
        known, owners = self._owners
        if known != stamps or (owners.server is not None) != is_whole:
            owners = Owners.of(stamps, [1.0] * len(stamps))  # logits are kept as they were seen: no scale
            self._owners = stamps, owners if is_whole else replace(owners, server=None)
        return self._owners[1]

    def lose(self, rows: int) -> None:
        """Count rows that were not measured."""
        self._frames.lose(self._owners[1], rows)


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """A step's statistics and tokens, as SGLang's ``DeviceAuxiliaryOutput``. They have their own way to the host."""

    sampling: Sampling
    rows: Columns
    tokens: Columns

    def copy_to_host(self, copy: Callable[[Any], Any]) -> _OnHost:
        """Nothing to copy."""
        return _OnHost(self.sampling, self.rows, self.tokens)


@dataclass(frozen=True, slots=True)
class _OnHost:
    """The same, as SGLang's ``HostAuxiliaryOutput``."""

    sampling: Sampling
    rows: Columns
    tokens: Columns

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        """See :meth:`Sampling.consume`."""
        self.sampling.consume(self.rows, self.tokens, batch, commits)
