"""The worker's end: frames to the hubs that its stamps name. It never waits: a frame that does not fit is dropped and
counted, and the count travels in the next frame's header.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corevital.frames.layout import HEADER_BYTES, ROW, SAMPLED, Frame, Source, encode
from corevital.frames.wire import Routes

MAX_BYTES: Final = 256 << 10
"""Of a frame: 1024 rows and their tokens are 246 KB. A sender splits what is larger."""

_MAX_COUNTS: Final = 256
"""Servers whose lost records are counted, those that were never there included."""

NO_ROWS: Final = np.empty(0, ROW)
NO_SAMPLED: Final = np.empty(0, SAMPLED)


class FrameSender:
    """Sends frames. Create it in the process that uses it, after any fork.

    Args:
        source: where the logits of its rows are seen.

    Raises:
        ValueError: a name of the source is not as described there.
    """

    def __init__(self, source: Source) -> None:
        encode(Frame(NO_ROWS, NO_SAMPLED, source))  # raises here, not for every frame
        self._source = source
        self._identity = secrets.randbits(64)
        self._routes = Routes()
        self.dropped: Counter[str] = Counter()
        """Records dropped so far because the way out was full, by server."""

    def send(self, server: str, rows: npt.NDArray[Any] = NO_ROWS, sampled: npt.NDArray[Any] = NO_SAMPLED) -> None:
        """Send a frame to ``server``, several where it is too large for one, or drop and count it. Never blocks.

        Args:
            server: the id in the stamp.
            rows: array of :data:`~corevital.frames.layout.ROW`.
            sampled: array of :data:`~corevital.frames.layout.SAMPLED`.
        """
        route, closed = self._routes.to(server)
        for gone in closed:
            del self.dropped[gone]
        if route is None:
            self.drop(server, len(rows) + len(sampled))
            return
        for part in _parts(rows, sampled):
            frame = Frame(*part, self._source, self._identity, self.dropped[server], time.time())
            if not self._routes.send(route, [encode(frame)]):
                self.drop(server, len(frame.rows) + len(frame.sampled))

    def drop(self, server: str, records: int) -> None:
        """Count records that were lost on their way to ``server``."""
        self.dropped[server] += records
        if len(self.dropped) > _MAX_COUNTS:
            del self.dropped[next(name for name in self.dropped if name not in self._routes)]

    def close(self) -> None:
        """Deliver what is queued within a bound, then close."""
        self._routes.close()


def _parts(rows: npt.NDArray[Any], sampled: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """The tables of frames that are small enough: one, or all rows before the first token."""
    room = MAX_BYTES - HEADER_BYTES
    if rows.nbytes + sampled.nbytes <= room:
        yield rows, sampled
        return
    for at in range(0, len(rows), step := room // ROW.itemsize):
        yield rows[at : at + step], NO_SAMPLED
    for at in range(0, len(sampled), step := room // SAMPLED.itemsize):
        yield NO_ROWS, sampled[at : at + step]
