"""What is kept of a sequence's tokens beyond its features: its series, what its segments need, and likeliest tokens."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from corevital_otel.measure import token_values
from corevital_otel.measure.live import LiveSequence
from corevital_otel.report import Features, Likeliest, Series

Array = npt.NDArray[Any]

CHUNK: Final = 32
"""Tokens that are folded at a time."""

UNKNOWN: Final = -1
"""Stands for an index or a token that is not known."""

SERIES: Final = (token_values.ENTROPY, token_values.SURPRISAL, token_values.MARGIN, token_values.TOPK_MASS)
"""The first columns of the per-token values."""
ALTERNATIVES: Final = 5
"""Of a place's likeliest tokens, so many are kept where content is stored."""
LIKELIEST: Final = np.dtype([("id", "<i4"), ("logprob", "<f4")])
_FORCED: Final = np.array([[0.0], [0.0], [1.0], [1.0], [-np.inf]], np.float32)
"""What is kept of a forced token, by column: its series has what the mask left; the last one tells it from others."""


class Tails(NamedTuple):
    """What is still in the windows of ``S`` sequences, up to their last tokens; ``T`` are the longest's.

    Attributes:
        first, last: ``[S]`` output indices where a tail begins, and one beyond its end.
        chunk: the values; behind a sequence's own end nothing is observed.
        tokens: ``[S, T]`` int32 ids, negative where unknown.
        features: of the whole sequences.
        nan, inf: whether a row of the sequence had a NaN or +Inf among its logits.
        whole: every token of the client was observed, and nothing else was folded.
        exact: no surprisal in the tail is an estimate that a record still to come could replace.
        alarmed_at: output index at which the watched maximum crossed its threshold, negative: it did not.
    """

    first: list[int]
    last: list[int]
    chunk: token_values.Chunk
    tokens: Array
    features: list[Features]
    nan: list[bool]
    inf: list[bool]
    whole: list[bool]
    exact: list[bool]
    alarmed_at: list[int]


def series(sequence: LiveSequence, tails: Tails, i: int, most: int) -> Series:
    """The series of a sequence; see :func:`values`."""
    found = values(sequence, tails, i, len(SERIES), most)
    return Series(
        entropy=found[token_values.ENTROPY],
        surprisal=found[token_values.SURPRISAL],
        margin=found[token_values.MARGIN],
        topk_mass=found[token_values.TOPK_MASS],
    )


def values(sequence: LiveSequence, tails: Tails, i: int, columns: int, most: int) -> Array:
    """The first columns of the per-token values of a sequence, the ``i``-th of the tails: ``[columns, most]`` float32.

    NaN where one is not known. The confidence of a forced token is -inf.
    """
    parts = [part[:columns] for part in sequence.chunks]
    if len(parts) * CHUNK == tails.first[i]:
        parts.append(kept(tails.chunk, columns, i)[:, 0, : tails.last[i] - tails.first[i]])
    found = np.full((columns, most), np.nan, np.float32)
    if parts:
        known = np.concatenate(parts, axis=1)[:, :most]
        found[:, : known.shape[1]] = known
    return found


def likeliest(sequence: LiveSequence, tails: Tails, i: int, most: int) -> Likeliest | None:
    """The likeliest tokens of a sequence, the ``i``-th of the tails, at the first ``most`` places; None: not kept.

    There are fewer of an output that has chunks missing.
    """
    parts = [*sequence.likeliest]
    if len(parts) * CHUNK == tails.first[i]:
        parts.append(likeliest_of(tails.chunk, i)[: tails.last[i] - tails.first[i]])
    if not parts:
        return None
    found = np.concatenate(parts)[:most]
    return Likeliest(found["id"], found["logprob"])


def likeliest_of(chunk: token_values.Chunk, sequence: int) -> Array:
    """The likeliest tokens of one sequence of a chunk: ``[T, k]`` of :data:`LIKELIEST`."""
    assert chunk.rows is not None  # noqa: S101 - for the types: it was made of rows
    rows = chunk.rows[sequence]
    found = np.empty((len(rows), ALTERNATIVES), LIKELIEST)
    found["id"] = np.where(chunk.observed[sequence, :, None], rows["topk_ids"][:, :ALTERNATIVES], UNKNOWN)
    found["logprob"] = rows["topk_logprobs"][:, :ALTERNATIVES]
    return found


def kept(chunk: token_values.Chunk, columns: int, sequence: int | None = None) -> Array:
    """The first columns of a chunk, of all its sequences or one, as they are kept: ``[columns, S, T]`` float32."""
    some = slice(None) if sequence is None else slice(sequence, sequence + 1)
    values: Array = chunk.values[:columns, some].astype(np.float32)
    if chunk.forced is not None:
        values[:, chunk.forced[some]] = _FORCED[:columns]
    return values
