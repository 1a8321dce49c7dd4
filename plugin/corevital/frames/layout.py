"""The binary layout of a frame: contiguous bytes, no per-row Python objects on the way.

A frame holds two tables. ``rows``: the statistics of logits that a token is about to be sampled from.
``sampled``: the token that really was sampled from an earlier row, with its log-probability, known one step later.
Both are keyed by (sequence key, output index); a later record for the same key and index replaces the earlier one,
which is how chunked prefill, preemption, rejected drafts and recycled slots all come right.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

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

_HEADER: Final = struct.Struct("<4sHHIIQQd")
_MAGIC: Final = b"CVF1"
_VERSION: Final = 2

_NAME: Final = re.compile(r"[\w.+-]{1,32}", re.ASCII)
_MOST_NAMES_BYTES: Final = 3 * 32 + 8  # with two spaces between the names, and padding to a multiple of 8

HEADER_BYTES: Final = _HEADER.size + _MOST_NAMES_BYTES
"""Of a frame before its tables, at most."""


class FrameError(ValueError):
    """Bytes that are not a frame."""


class FrameVersionError(FrameError):
    """A frame of another version of corevital."""


class Source(NamedTuple):
    """Where logits were seen. Each name has 1 to 32 ASCII letters, digits and ``_.+-``; there is no list of them.

    Attributes:
        engine: the serving engine.
        runner: its model runner (``corevital.runner``).
        stage: which logits it showed (``corevital.logits.stage``): ``raw``, ``post_penalty``, ``pre_grammar``.
    """

    engine: str = "unknown"
    runner: str = "unknown"
    stage: str = "unknown"


UNKNOWN_SOURCE: Final = Source()


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        rows: array of :data:`ROW`.
        sampled: array of :data:`SAMPLED`.
        source: where its logits were seen.
        sender: random identity of the sending worker.
        dropped: records this sender has had to drop so far, of those for this server.
        sent_at: wall clock of the sender, seconds since the epoch.
    """

    rows: npt.NDArray[Any]
    sampled: npt.NDArray[Any]
    source: Source = UNKNOWN_SOURCE
    sender: int = 0
    dropped: int = 0
    sent_at: float = 0.0


def encode(frame: Frame) -> bytes:
    """Frame to bytes: header, the source's names, rows, sampled.

    Raises:
        ValueError: a name of the source is not as described there.
    """
    names = _names(frame.source)
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        len(names),
        len(frame.rows),
        len(frame.sampled),
        frame.sender,
        frame.dropped,
        frame.sent_at,
    )
    return b"".join((header, names, frame.rows.tobytes(), frame.sampled.tobytes()))


@functools.lru_cache(maxsize=16)
def _names(source: Source) -> bytes:
    """The three names, separated by spaces and padded with them to a multiple of 8 bytes: tables stay aligned."""
    if not all(map(_NAME.fullmatch, source)):
        raise ValueError(f"each name of {source} must have 1 to 32 ASCII letters, digits and _.+-")
    names = " ".join(source)
    return names.encode() + b" " * (-len(names) % 8)


@functools.lru_cache(maxsize=16)  # a worker's frames all have the same
def _source(names: bytes) -> Source:
    if len(names) > _MOST_NAMES_BYTES or len(names) % 8:
        raise FrameError(f"{len(names)} bytes of names are not a multiple of 8 up to {_MOST_NAMES_BYTES}")
    found = names.decode("ascii", "replace").rstrip(" ").split(" ")
    if len(found) != len(Source._fields) or not all(map(_NAME.fullmatch, found)):
        raise FrameError("the frame does not name its engine, runner and stage")
    return Source(*found)


def decode(data: bytes | memoryview) -> Frame:
    """Bytes to frame, without copying the tables.

    Raises:
        FrameVersionError: a frame of another version.
        FrameError: not a frame, or cut short.
    """
    if len(data) < _HEADER.size:
        raise FrameError(f"{len(data)} bytes are too few for a frame")
    magic, version, n_names, n_rows, n_sampled, sender, dropped, sent_at = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise FrameError("not a frame")
    if version != _VERSION:
        raise FrameVersionError(f"a frame of version {version}, expected {_VERSION}")
    at = _HEADER.size + n_names
    source = _source(bytes(data[_HEADER.size : at]))
    end = at + n_rows * ROW.itemsize
    if len(data) != end + n_sampled * SAMPLED.itemsize:
        raise FrameError(f"frame of {len(data)} bytes does not hold {n_rows} rows and {n_sampled} sampled tokens")
    return Frame(
        rows=np.frombuffer(data, ROW, n_rows, at),
        sampled=np.frombuffer(data, SAMPLED, n_sampled, end),
        source=source,
        sender=sender,
        dropped=dropped,
        sent_at=sent_at,
    )
