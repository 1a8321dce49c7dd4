"""The binary layout of a frame: contiguous bytes, no per-row Python objects on the way.

A frame holds two tables. ``rows``: the statistics of logits that a token is about to be sampled from.
``sampled``: the token that really was sampled from an earlier row, with its log-probability, known one step later.
Both are keyed by (sequence key, output index); a later record for the same key and index replaces the earlier one,
which is how chunked prefill, preemption, rejected drafts and recycled slots all come right.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

TOP_K: Final = 20
"""Entries of the top-k table each row carries."""

ROW: Final = np.dtype(
    [
        ("key", "<u8"),  # the sequence, from the request's stamp
        ("index", "<u4"),  # output index: 0 for the first generated token
        ("nan_count", "<u4"),
        ("posinf_count", "<u4"),
        ("neginf_count", "<u4"),
        ("logsumexp", "<f4"),  # nats
        ("entropy", "<f4"),  # nats
        ("varentropy", "<f4"),  # nats^2
        ("max_logit", "<f4"),
        ("top1_prob", "<f4"),
        ("margin", "<f4"),  # p1 - p2
        ("topk_mass", "<f4"),  # probability of the 10 likeliest
        ("vocab", "<u4"),  # entries in the row, masked ones included
        ("topk_ids", "<i4", (TOP_K,)),
        ("topk_logprobs", "<f4", (TOP_K,)),  # nats
    ]
)
"""One logits row. 216 bytes."""

SAMPLED: Final = np.dtype(
    [
        ("key", "<u8"),
        ("index", "<u4"),
        ("token", "<i4"),  # or REJECTED
        ("logprob", "<f4"),  # nats, under the distribution of the row's logits; NaN: look it up in the row's table
        ("_pad", "<u4"),
    ]
)
"""One sampled token. 24 bytes."""

REJECTED: Final = -1
"""In place of a token: the row of this index does not count, no token came of it (a rejected draft)."""

RUNNERS: Final = ("unknown", "v1", "mrv2")
"""Model runners, by the code a frame's header carries."""

STAGES: Final = {"unknown": "raw", "v1": "raw", "mrv2": "post_penalty"}
"""Which logits each runner lets us see (``corevital.logits.stage``)."""

_HEADER: Final = struct.Struct("<4sHHIIQQd")
_MAGIC: Final = b"CVF1"
_VERSION: Final = 1

HEADER_BYTES: Final = _HEADER.size
"""Of a frame, before its tables."""


class FrameError(ValueError):
    """Bytes that are not a frame of this version."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        rows: array of :data:`ROW`.
        sampled: array of :data:`SAMPLED`.
        runner: name of the model runner, one of :data:`RUNNERS`.
        sender: random identity of the sending worker.
        dropped: records this sender has had to drop so far, of those for this server.
        sent_at: wall clock of the sender, seconds since the epoch.
    """

    rows: npt.NDArray[Any]
    sampled: npt.NDArray[Any]
    runner: str = "unknown"
    sender: int = 0
    dropped: int = 0
    sent_at: float = 0.0


def encode(frame: Frame) -> bytes:
    """Frame to bytes: header, rows, sampled."""
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        RUNNERS.index(frame.runner),
        len(frame.rows),
        len(frame.sampled),
        frame.sender,
        frame.dropped,
        frame.sent_at,
    )
    return b"".join((header, frame.rows.tobytes(), frame.sampled.tobytes()))


def decode(data: bytes | memoryview) -> Frame:
    """Bytes to frame, without copying the tables.

    Raises:
        FrameError: not a frame, another version of it, or cut short.
    """
    if len(data) < _HEADER.size:
        raise FrameError(f"{len(data)} bytes are too few for a frame")
    magic, version, runner, n_rows, n_sampled, sender, dropped, sent_at = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or runner >= len(RUNNERS):
        raise FrameError("not a frame of this version")
    at = _HEADER.size
    end = at + n_rows * ROW.itemsize
    if len(data) != end + n_sampled * SAMPLED.itemsize:
        raise FrameError(f"frame of {len(data)} bytes does not hold {n_rows} rows and {n_sampled} sampled tokens")
    return Frame(
        rows=np.frombuffer(data, ROW, n_rows, at),
        sampled=np.frombuffer(data, SAMPLED, n_sampled, end),
        runner=RUNNERS[runner],
        sender=sender,
        dropped=dropped,
        sent_at=sent_at,
    )
