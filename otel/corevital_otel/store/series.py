"""How a per-token series is packed into a column.

Format 1: the byte ``1``, then zlib over four little-endian float32 arrays of equal length, one after the other:
entropy (bits), surprisal (bits), margin, top-10 mass. NaN: not known.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np

from corevital_otel.report import Series

_FORMAT: Final = b"\x01"
_FIELDS: Final = ("entropy", "surprisal", "margin", "topk_mass")


def pack(series: Series) -> bytes:
    """A series as bytes."""
    arrays = np.stack([getattr(series, name) for name in _FIELDS]).astype("<f4")
    return _FORMAT + zlib.compress(arrays.tobytes(), level=1)


def unpack(data: bytes) -> Series:
    """Bytes as a series.

    Raises:
        ValueError: bytes of another format, or damaged.
    """
    if data[:1] != _FORMAT:
        raise ValueError(f"series of format {data[:1].hex()}: this version reads format {_FORMAT.hex()}")
    try:
        arrays = np.frombuffer(zlib.decompress(data[1:]), "<f4").reshape(len(_FIELDS), -1)
    except zlib.error as error:
        raise ValueError(f"damaged series: {error}") from None
    return Series(**dict(zip(_FIELDS, arrays, strict=True)))
