"""How a per-token series is packed into a column.

Format 1: the byte ``1``, then zlib over four little-endian float32 arrays of equal length, one after the other:
entropy (bits), surprisal (bits), margin, top-10 mass. NaN: not known.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np

from corevital_otel.report import Series

MAX_TOKENS: Final = 32_768
"""Tokens of the longest series. See ``max_series_tokens`` of :class:`corevital_otel.measure.assembler.Assembler`."""

_FORMAT: Final = b"\x01"
_FIELDS: Final = ("entropy", "surprisal", "margin", "topk_mass")
_MAX_BYTES: Final = 4 * len(_FIELDS) * MAX_TOKENS


def pack(series: Series) -> bytes:
    """A series as bytes; of a longer one the first :data:`MAX_TOKENS` tokens."""
    arrays = np.empty((len(_FIELDS), min(len(series), MAX_TOKENS)), "<f4")
    for row, name in zip(arrays, _FIELDS, strict=True):
        row[:] = getattr(series, name)[:MAX_TOKENS]
    return _FORMAT + zlib.compress(arrays.tobytes(), level=1)


def unpack(data: bytes) -> Series:
    """Bytes as a series.

    Raises:
        ValueError: bytes of another format, damaged, or of a longer series than there can be.
    """
    if data[:1] != _FORMAT:
        raise ValueError(f"series of format {data[:1].hex()}: this version reads format {_FORMAT.hex()}")
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data[1:], _MAX_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"damaged series: {error}") from None
    if len(raw) > _MAX_BYTES:
        raise ValueError(f"damaged series: more than {MAX_TOKENS} tokens")
    if not stream.eof or len(raw) % (4 * len(_FIELDS)):
        raise ValueError("damaged series: its end is missing")
    arrays = np.frombuffer(raw, "<f4").reshape(len(_FIELDS), -1)
    return Series(**dict(zip(_FIELDS, arrays, strict=True)))
