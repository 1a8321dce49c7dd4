"""The parts of an output, each measured like a whole output: reasoning, answer, calls of tools.

Only an engine that knows the parts names them, at a sequence's end: ``segments`` of
:class:`corevital.frames.lifecycle.Finished`. What it names is reasoning, a call of a tool, or a mark between parts; the
rest of the output is the answer. The values of such a sequence's tokens are kept until then; any other sequence has
nothing to do with this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital.frames.lifecycle import SEGMENT_KINDS, Segment
from corevital_otel.measure import features, loops
from corevital_otel.measure.token_values import COLUMNS, CONFIDENCE, ENTROPY, Chunk
from corevital_otel.report import Assessed, Segments

Array = npt.NDArray[Any]

_ANSWER: Final = 0
_CODES: Final = {kind: code for code, kind in enumerate(SEGMENT_KINDS, 1)}


def measure(
    found: Iterable[Segment],
    values: Array,
    tokens: Array,
    high_entropy_bits: float,
    watch: features.Watch | None = None,
) -> Segments:
    """The features of each part of an output. Tokens of one part that are apart count as successive.

    The risk is that of the answer, or of the calls of tools where those are longer: of what the client acts on. An
    output that is all reasoning is assessed whole.

    Args:
        found: the parts that are not the answer; what is beyond the output or overlaps an earlier part does not count.
        values: ``[COLUMNS, T]`` of the first tokens at least, as :class:`corevital_otel.measure.windows.Windows` keeps
            them.
        tokens: ``[T]`` ids of the output's tokens.
        high_entropy_bits: threshold of ``high_entropy_steps``.
        watch: as in :func:`corevital_otel.measure.features.fold`.
    """
    kinds = np.zeros(len(tokens), np.int8)
    for segment in found:
        part = kinds[max(segment.start, 0) : max(segment.end, 0)]
        part[part == _ANSWER] = _CODES.get(segment.kind, _ANSWER)
    answer, reasoning, calls = (
        _part(np.flatnonzero(kinds == code), values, tokens, high_entropy_bits, watch)
        for code in (_ANSWER, _CODES["reasoning"], _CODES["tool_call"])
    )
    assessed = None
    if calls is not None and (answer is None or calls.features.tokens > answer.features.tokens):
        assessed = replace(calls, segment="tool_call")
    elif answer is not None:
        assessed = answer
    return Segments(
        reasoning=None if reasoning is None else reasoning.features,
        answer=None if answer is None else answer.features,
        tool_call=None if calls is None else calls.features,
        assessed=assessed,
    )


def _part(
    at: Array, values: Array, tokens: Array, high_entropy_bits: float, watch: features.Watch | None
) -> Assessed | None:
    """One part: the tokens at these output indices, ``[n]``; None where there are none."""
    if not len(at):
        return None
    known = at[at < values.shape[1]]
    chunk_values = np.full((COLUMNS, 1, len(known)), np.nan)
    chunk_values[:, 0] = values[:, known]
    observed = np.isfinite(chunk_values[ENTROPY])
    forced = chunk_values[CONFIDENCE] == -np.inf
    chunk_values[:, forced] = np.nan
    no = np.zeros(1, bool)
    chunk = Chunk(chunk_values, observed, np.zeros_like(observed), no, no, np.arange(len(known))[None], forced)
    state = features.initial(1)
    features.fold(state, np.zeros(1, np.int64), chunk, high_entropy_bits, watch=watch)
    (found,) = features.summaries(state)
    found = replace(found, tokens=len(at), repetition_share=loops.share(loops.repeated_at(tokens[at])))
    alarmed = int(state["alarmed_at"][0])
    if alarmed < 0 and watch is not None and features.final_peak(found, watch.peak) > watch.threshold:
        alarmed = len(known) - 1
    return Assessed(segment="answer", features=found, alarm_onset=int(at[alarmed]) if alarmed >= 0 else None)
