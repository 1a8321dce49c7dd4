"""From the tables of steps to those of frames: whose each row is, its output index, its token's log-probability."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from corevital.frames.layout import REJECTED, ROW, SAMPLED
from corevital.steps.slots import Owners
from corevital.steps.step import POSITION, SLOT, UNKNOWN, Part

_TOLERANCE: Final = 1e-4
"""Largest relative difference between a kept maximum and the one we saw; beyond it the kept row is not trusted."""

Array = npt.NDArray[Any]


class Sender(Protocol):
    """What is needed of :class:`corevital.frames.sender.FrameSender`."""

    def send(self, server: str, rows: Array = ..., sampled: Array = ...) -> None:
        """Send or drop one frame, never block. Called from one thread."""

    def drop(self, server: str, records: int) -> None:
        """Count records that were lost on their way to a server."""

    def close(self) -> None:
        """Deliver what is queued within a bound."""


def deliver(parts: Sequence[Part], owners: Owners, sender: Sender) -> None:
    """Send parts of steps with the same owners, all arrived: a frame to each server that measures some of them.

    Args:
        parts: all with rows, or one without; all with ``where``, or none.
        owners: theirs.
        sender: where frames leave.
    """
    frames: defaultdict[str, dict[str, Array]] = defaultdict(dict)
    words = np.concatenate([part.step.rows.words for part in parts])
    if places := [part.step.where for part in parts if part.step.where is not None]:
        words[:, SLOT] = list(chain.from_iterable(slots for slots, _ in places))
        words[:, POSITION] = list(chain.from_iterable(positions for _, positions in places))
    tokens = np.concatenate([part.token_words() for part in parts])
    has_rows = parts[0].has_rows
    if has_rows:
        words, tokens = _only(tokens[:, 0] != REJECTED, words, tokens)  # rows never sent need not be taken back
    known, their_tokens = _only(tokens[:, 0] != UNKNOWN, words, tokens)
    for server, mine in _by_server(known, owners):  # before the rows, which are made in the memory of the words
        frames[server]["sampled"] = _sampled(known[mine], their_tokens[mine], owners)
    if has_rows:
        for server, mine in _by_server(words, owners):
            frames[server]["rows"] = _rows(words[mine], owners)
    for server, tables in frames.items():
        sender.send(server, **tables)


def _only(these: Array, words: Array, tokens: Array) -> tuple[Array, Array]:
    return (words, tokens) if these.all() else (words[these], tokens[these])


def _by_server(words: Array, owners: Owners) -> Iterator[tuple[str, Array | slice]]:
    """Which rows count, by the server that measures them. Nearly always there is one."""
    if len(words) == 0:
        return
    if owners.server is not None:
        yield owners.server, slice(None)
        return
    slots = words[:, SLOT]
    servers = owners.servers[slots]
    servers[(slots < 0) | (words[:, POSITION] < owners.firsts[slots])] = None
    for server in set(servers.tolist()) - {None}:
        yield server, servers == server


def _rows(words: Array, owners: Owners) -> Array:
    """The words as the rows they are to be, in their own memory."""
    slots = words[:, SLOT].copy()  # the keys are about to be written over them
    table = words.view(ROW)[:, 0]
    table["key"] = owners.keys[slots]
    table["index"] += owners.bases[slots].astype(np.uint32)  # modulo 2^32, as a negative base needs it
    return table


def _sampled(words: Array, tokens: Array, owners: Owners) -> Array:
    slots, rows = words[:, SLOT], words.view(ROW)[:, 0]
    _, kept, kept_max = tokens.view(np.float32).T
    table = np.zeros(len(words), SAMPLED)
    table["key"] = owners.keys[slots]
    table["index"] = words[:, POSITION] + owners.bases[slots]
    table["token"] = tokens[:, 0]
    with np.errstate(invalid="ignore", over="ignore"):
        scale = owners.scales[slots]
        untouched = np.abs(kept_max * scale - rows["max_logit"]) <= _TOLERANCE * (1 + np.abs(rows["max_logit"]))
        logprob = kept * scale - rows["logsumexp"]
        # a positive value is not a log-probability: another processor has changed that entry
        table["logprob"] = np.where(untouched & (logprob < _TOLERANCE) & (tokens[:, 0] != REJECTED), logprob, np.nan)
    return table
