"""Whether a running sequence is in a repetition loop now, for an engine that may end it.

It is asked in the engine's own thread, so almost always it must cost next to nothing: every :data:`EVERY` tokens, three
groups of four tokens are looked up among the 512 before them, as bytes. Only where two are there, and two thirds of a
loop's length repeat at that distance, the tokens are judged as those of a finished sequence are.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np

from corevital_otel.measure import loops

EVERY: Final = 16
"""Tokens between two looks. A loop is found so many tokens after it is long enough to be one, or fewer."""

_GRAM: Final = 4 * 4
"""Bytes of four tokens."""
_ENDS: Final = (0, 5, 11)
"""Tokens behind the groups that are looked up."""
_NEEDED: Final = 2
_REACH: Final = loops.LAGS + EVERY
_MOST_MISSES: Final = 2
"""Looks in a row that judge the tokens and find no loop, before the next ones wait longer: a table or a list."""
_LONGEST_WAIT: Final = 64


class LoopCheck:
    """Looks at one sequence as it grows. Not thread-safe.

    Args:
        least_span: matching tokens that a loop has at least.

    Attributes:
        due: tokens from which on :meth:`looping` may find something.
    """

    def __init__(self, least_span: int = loops.LEAST_SPAN) -> None:
        self.due = EVERY
        self._least_span = least_span
        self._misses = 0
        self._raw = b""  # of the last tokens, four bytes each
        self._seen = 0

    def looping(self, tokens: Sequence[int]) -> bool:
        """Whether the sequence is in a loop.

        Args:
            tokens: all ids of the output so far, at least ``due``; those of the last call come first.
        """
        count = len(tokens)
        self.due = count + EVERY
        new = array("i", tokens[max(self._seen, count - _REACH) :]).tobytes()
        self._raw, self._seen = (self._raw + new)[-4 * _REACH :], count
        lag = _lag(self._raw)
        if not lag:
            self._misses = 0
            return False
        recent = np.array(tokens[-loops.HISTORY :], np.int32)
        need = max(self._least_span, (loops.COPIES - 1) * lag)
        if len(recent) - lag < need:
            return False
        matches = recent[-need:] == recent[-need - lag : -lag]
        matching = int(np.count_nonzero(matches))
        is_exact = bool(matches[-max(lag, EVERY) :].all())
        if matching * 3 < need * 2 or (is_exact and matching * 8 < need * 7):
            return False
        found = loops.find(recent, self._least_span, live=True)
        if found is not None and found.loop and found.end > len(recent) - EVERY:
            return True
        if not is_exact:
            self._misses += 1
            self.due = count + min(EVERY << max(self._misses - _MOST_MISSES, 0), _LONGEST_WAIT)
        return False


def _lag(raw: bytes) -> int:
    """How far back most of the groups at the end of the tokens last occurred, in tokens; 0: they did not."""
    lags = []
    for end in _ENDS:
        stop = len(raw) - 4 * end
        if stop <= _GRAM:
            break
        at = raw.rfind(raw[stop - _GRAM : stop], 0, stop - 4)
        if at >= 0:
            lags.append((stop - _GRAM - at) // 4)
    return max(set(lags), key=lags.count) if len(lags) >= _NEEDED else 0
