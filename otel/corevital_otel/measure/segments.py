"""The parts of an output: reasoning, answer, calls of tools. The one that the risk is of is measured like an output.

Only an engine that knows the parts names them, at a sequence's end: ``segments`` of
:class:`corevital.frames.lifecycle.Finished`. What it names is reasoning, a call of a tool, or a mark between parts; the
rest of the output is the answer. The values of such a sequence's tokens are kept until then; any other sequence has
nothing to do with this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from corevital.frames.lifecycle import SEGMENT_KINDS, Segment
from corevital_otel.measure import features, loops
from corevital_otel.measure.token_values import COLUMNS, CONFIDENCE, ENTROPY, SURPRISAL, Chunk
from corevital_otel.report import Assessed, Part, Segments

Array = npt.NDArray[Any]

_ANSWER: Final = 0
_CODES: Final = {kind: code for code, kind in enumerate(SEGMENT_KINDS, 1)}
_REASONING: Final = _CODES["reasoning"]
_CALL: Final = _CODES["tool_call"]
_KINDS: Final = len(_CODES) + 1
_PLACES: Final = np.array([[ENTROPY], [SURPRISAL]], np.int8) * _KINDS
_TOGETHER: Final = 8_192
"""Tokens measured together at most, padding included, to bound memory; a longer part is measured alone."""


class Output(NamedTuple):
    """An output whose parts are known.

    Attributes:
        segments: the parts that are not the answer; what is beyond the output or overlaps an earlier part does not
            count.
        values: ``[COLUMNS, T]`` of the first tokens at least, as :mod:`corevital_otel.measure.kept` has them.
        tokens: ``[T]`` ids of its tokens.
    """

    segments: Iterable[Segment]
    values: Array
    tokens: Array


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The part of an output that is assessed: its name, and the output indices of its tokens ``[n]``."""

    output: Output
    number: int
    segment: str
    at: Array
    known: int
    """Tokens whose values were kept: the first ones."""


def measure(outputs: Sequence[Output], high_entropy_bits: float, watch: features.Watch | None = None) -> list[Segments]:
    """The parts of each output, and the features of the one that its risk is of.

    The risk is that of the answer, or of the calls of tools where those are longer: of what the client acts on. An
    output that is all reasoning is assessed whole, and so is one with no entropy of that part. Tokens of one part that
    are apart count as successive. What a fold costs is nearly the same for one part and for many: the assessed ones of
    all outputs are folded together.

    Args:
        high_entropy_bits: threshold of ``high_entropy_steps``.
        watch: as in :func:`corevital_otel.measure.features.fold`.
    """
    found: list[Segments] = []
    chosen: list[_Chosen] = []
    for number, output in enumerate(outputs):
        kinds = _kinds(output)
        parts = _parts(output, kinds)
        answer, call = parts[_ANSWER], parts[_CALL]
        found.append(Segments(reasoning=parts[_REASONING], answer=answer, tool_call=call))
        code = _CALL if call is not None and (answer is None or call.tokens > answer.tokens) else _ANSWER
        part = parts[code]
        if part is not None and part.entropy_mean is not None:
            at = np.flatnonzero(kinds == code)
            known = int(np.searchsorted(at, output.values.shape[1]))
            chosen.append(_Chosen(output, number, "answer" if code == _ANSWER else "tool_call", at, known))
    for batch in _batches(chosen):
        for one, assessed in zip(batch, _assess(batch, high_entropy_bits, watch), strict=True):
            found[one.number] = replace(found[one.number], assessed=assessed)
    return found


def _kinds(output: Output) -> Array:
    """The part that each token belongs to, ``[T]``."""
    kinds = np.zeros(len(output.tokens), np.int8)
    for segment in output.segments:
        part = kinds[max(segment.start, 0) : max(segment.end, 0)]
        part[part == _ANSWER] = _CODES.get(segment.kind, _ANSWER)
    return kinds


def _parts(output: Output, kinds: Array) -> list[Part | None]:
    """The parts by their codes; None where the output has no such part."""
    values = output.values[: SURPRISAL + 1]  # of entropy and surprisal
    there = np.isfinite(values)
    there &= output.values[CONFIDENCE] != -np.inf  # not forced
    place = (kinds[: values.shape[1]] + _PLACES)[there]
    sums = np.bincount(place, values[there], minlength=_PLACES.size * _KINDS).tolist()
    counts = np.bincount(place, minlength=_PLACES.size * _KINDS).tolist()
    means = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
    tokens = np.bincount(kinds, minlength=_KINDS).tolist()
    return [
        Part(tokens=count, entropy_mean=means[code], surprisal_mean=means[_KINDS + code]) if count else None
        for code, count in enumerate(tokens)
    ]


def _batches(chosen: list[_Chosen]) -> Iterator[list[_Chosen]]:
    """Parts of about the same length, as many as may be measured together."""
    batch: list[_Chosen] = []
    for one in sorted(chosen, key=lambda one: one.known):
        if batch and (len(batch) + 1) * one.known > _TOGETHER:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _assess(batch: list[_Chosen], high_entropy_bits: float, watch: features.Watch | None) -> Iterator[Assessed]:
    """Measure these parts as if each were a whole output."""
    lengths = np.array([one.known for one in batch])
    shape = (len(batch), lengths.max())
    values = np.full((COLUMNS, *shape), np.nan)
    for i, one in enumerate(batch):
        values[:, i, : one.known] = one.output.values[:, one.at[: one.known]]
    forced = values[CONFIDENCE] == -np.inf
    observed = np.isfinite(values[ENTROPY])
    if forced.any():
        values[:, forced] = np.nan
    no = np.zeros(len(batch), bool)
    top = np.broadcast_to(np.arange(shape[1]), shape)  # no two the same
    chunk = Chunk(values, observed, np.zeros(shape, bool), no, no, top, forced)
    state = features.initial(len(batch))
    features.fold(state, np.zeros(len(batch), np.int64), chunk, high_entropy_bits, lengths, watch)
    alarms = state["alarmed_at"].tolist()
    for one, found, crossed in zip(batch, features.summaries(state), alarms, strict=True):
        at_end = crossed < 0 and watch is not None and features.final_peak(found, watch.peak) > watch.threshold
        alarmed = one.known - 1 if at_end else crossed
        repetition = loops.share(loops.repeated_at(one.output.tokens[one.at]))
        yield Assessed(
            segment=one.segment,
            features=replace(found, repetition_share=repetition),
            alarm_onset=int(one.at[alarmed]) if alarmed >= 0 else None,
        )
