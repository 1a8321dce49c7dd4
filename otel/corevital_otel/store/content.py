"""The text of an output's tokens, and how it is packed into a column.

Format 1: the byte ``1``, then zlib over JSON: ``tokens``, an array with the text that each of the first 4,096 tokens
adds; ``alternatives``, for each of the first of them an array of ``[text, probability]``, the likeliest first;
``total``, how many tokens the output has; and ``segments``, its parts other than the answer, as ``[kind, start, end]``.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated, Any, Final

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from corevital.frames.lifecycle import MAX_SEGMENTS, Segment
from corevital.text import cut

MAX_TOKENS: Final = 4096
"""Tokens of an output whose text is stored at most, the first ones."""
PIECE_BYTES: Final = 256
"""Bytes of UTF-8 of a token's text that are kept."""

_FORMAT: Final = b"\x01"
_ALTERNATIVES: Final = 16
_MAX_BYTES: Final = 8 * 2**20
"""Of the JSON. A longer one loses its alternatives."""

_Piece = Annotated[str, Field(max_length=PIECE_BYTES)]
_Place = Annotated[int, Field(ge=0, lt=2**63)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Alternatives = Annotated[tuple[tuple[_Piece, _Share], ...], Field(max_length=_ALTERNATIVES)]


@dataclass(frozen=True, slots=True)
class Content:
    """The text of an output's tokens.

    Attributes:
        tokens: what each of the first :data:`MAX_TOKENS` tokens adds to the text; "" where a character is not
            complete yet.
        alternatives: for each of the first of them the likeliest tokens, with their probabilities; fewer than
            ``tokens`` where they are not known.
        total: tokens that the output has.
        segments: its parts that are not its answer, where they are known.
    """

    tokens: tuple[str, ...]
    alternatives: tuple[tuple[tuple[str, float], ...], ...] = ()
    total: int = 0
    segments: tuple[Segment, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of memory it takes, about."""
        texts = sum(map(len, self.tokens)) + sum(len(text) for place in self.alternatives for text, _ in place)
        return texts + 64 * len(self.tokens) + 160 * sum(map(len, self.alternatives))


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    tokens: Annotated[tuple[_Piece, ...], Field(max_length=MAX_TOKENS)]
    alternatives: Annotated[tuple[_Alternatives, ...], Field(max_length=MAX_TOKENS)] = ()
    total: _Place = 0
    segments: Annotated[tuple[tuple[_Piece, _Place, _Place], ...], Field(max_length=MAX_SEGMENTS)] = ()


def pack(content: Content) -> bytes:
    """A text as bytes. Half a surrogate pair, which UTF-8 cannot hold, becomes ``?``."""
    body: dict[str, Any] = {
        "tokens": [cut(piece, PIECE_BYTES) for piece in content.tokens[:MAX_TOKENS]],
        "alternatives": [
            [(cut(text, PIECE_BYTES), round(min(max(share, 0.0), 1.0), 6)) for text, share in place[:_ALTERNATIVES]]
            for place in content.alternatives[:MAX_TOKENS]
        ],
        "total": content.total,
        "segments": content.segments[:MAX_SEGMENTS],
    }
    packed = pydantic_core.to_json(body)
    if len(packed) > _MAX_BYTES:
        packed = pydantic_core.to_json({**body, "alternatives": []})
    return _FORMAT + zlib.compress(packed, level=1)


def unpack(data: bytes) -> Content:
    """Bytes as a text.

    Raises:
        ValueError: bytes of another format, damaged, or of a longer text than there can be.
    """
    if data[:1] != _FORMAT:
        raise ValueError(f"content of format {data[:1].hex()}: this version reads format {_FORMAT.hex()}")
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data[1:], _MAX_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"damaged content: {error}") from None
    if len(raw) > _MAX_BYTES or not stream.eof:
        raise ValueError("damaged content: too long, or its end is missing")
    try:
        found = _Stored.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise ValueError(f"damaged content: {first['type']}") from None
    segments = tuple(Segment(*segment) for segment in found.segments)
    return Content(found.tokens, found.alternatives, found.total, segments)
