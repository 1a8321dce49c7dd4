"""The text of an output's tokens, for the store: only with ``COREVITAL_DB_CONTENT=1``.

Tokens are decoded here, in the telemetry half, and only those of an output whose text is stored: no engine hands on any
text for it, and no span, metric or log has it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any, Final

import numpy as np

from corevital.guard import swallow
from corevital.log import warn_once
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.measure.capture import is_marked
from corevital_otel.report import Likeliest, RequestReport
from corevital_otel.sampling import is_kept
from corevital_otel.service.tokenizer import pieces, read_tokenizer
from corevital_otel.store.content import MAX_TOKENS, Content

_MOST_S: Final = 0.1
"""Time for the tokens of one output; those beyond it have no text. This thread shares the interpreter."""
_MOST_SHARE: Final = 0.1
"""Of the time may go by in decoding; outputs beyond it have no text: a broken model can flag each one."""
_BURST_S: Final = 1.0
"""Time for many outputs at once."""
_TOGETHER: Final = 1024
"""Alternatives that are decoded between two looks at the clock."""
_WITHOUT: Final = "COREVITAL_DB_CONTENT=1 stores no text of its outputs"
_TOKENIZERS: Final = 16
"""Tokenizers that are kept, for the models of all engines of this hub."""

Name = tuple[str, str | None]


class OutputTexts:
    """Decodes outputs. One thread makes all calls.

    Args:
        counters: counts texts that could not be decoded.
        own: the tokenizer of this process's engine, its name and revision; the name is empty where it is unknown.
    """

    def __init__(self, counters: Counters, own: Name) -> None:
        self._count_loss = counters.count_loss
        self._own = own
        self._tokenizers: OrderedDict[Name, Any] = OrderedDict()
        self._left_s, self._left_at = _BURST_S, time.monotonic()
        if own[0]:
            self._tokenizer(own)  # before it serves: to read one takes up to a second, in which nothing else runs

    def of(self, report: RequestReport) -> Content | None:
        """The text of a report whose risk is high or that has a flag up; None: of others, or it cannot be decoded."""
        token_ids = report.outcome.token_ids
        if not (len(token_ids) and is_kept(report) and is_marked(report.risk, report.health)):
            return None
        begun = time.monotonic()
        self._left_s = min(self._left_s + _MOST_SHARE * (begun - self._left_at), _BURST_S)
        self._left_at = begun
        if self._left_s <= 0:
            self._count_loss(Loss.CONTENT_BUSY)
            return None
        try:
            tokenizer = self._tokenizer(report.outcome.tokenizer or self._own)
            if tokenizer is None:
                self._count_loss(Loss.CONTENT_NO_TOKENIZER)
                return None
            texts = tuple(pieces(tokenizer, token_ids[:MAX_TOKENS], within_s=_MOST_S))
            alternatives = _alternatives(tokenizer, report.likeliest, len(texts), begun + 2 * _MOST_S)
            return Content(texts, alternatives, len(token_ids), tuple(report.outcome.segments))
        except Exception:
            self._count_loss(Loss.CONTENT_FAULT)
            swallow("the text of an output")
            return None
        finally:
            self._left_s -= time.monotonic() - begun

    def _tokenizer(self, name: Name) -> Any:
        if not name[0]:
            warn_once("no tokenizer", "the engine names no tokenizer: %s", _WITHOUT)
            return None
        if name not in self._tokenizers:
            self._tokenizers[name] = read_tokenizer(*name, without=_WITHOUT)
            if len(self._tokenizers) > _TOKENIZERS:
                self._tokenizers.popitem(last=False)
        return self._tokenizers[name]


def _alternatives(
    tokenizer: Any, likeliest: Likeliest | None, most: int, deadline: float
) -> tuple[tuple[tuple[str, float], ...], ...]:
    """The texts and probabilities of the likeliest tokens, at the first places at most. Each is decoded alone.

    There are none if decoding them takes until after ``deadline``, a monotonic time.
    """
    if likeliest is None:
        return ()
    ids, logprobs = likeliest.ids[:most], likeliest.logprobs[:most]
    usable = (ids >= 0) & np.isfinite(logprobs)
    distinct: list[int] = np.unique(ids[usable]).tolist()
    decoded: list[str] = []
    for at in range(0, len(distinct), _TOGETHER):
        if time.monotonic() > deadline:
            return ()
        some = [[one] for one in distinct[at : at + _TOGETHER]]
        decoded += tokenizer.decode_batch(some, skip_special_tokens=False)
    texts = dict(zip(distinct, decoded, strict=True))
    shares = np.exp(np.minimum(np.where(usable, logprobs, -np.inf), 0.0))
    return tuple(
        tuple((texts[one], share) for one, share, is_known in zip(*place, strict=True) if is_known)
        for place in zip(ids.tolist(), shares.tolist(), usable.tolist(), strict=True)
    )
