"""What the router's messages show of requests: who comes in, who has ended and why, who was dropped.

A shard keeps batches under ids of the router's. ``Prefill`` brings new requests, ``Decode`` joins batches,
``FilterBatch`` keeps some requests of a batch and ``ClearCache`` drops a whole one. Every method is called in the
shard's event loop.
"""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from typing import Any, Final, NamedTuple

from corevital.engines.tgi import names
from corevital.engines.tgi.describe import admitted
from corevital.engines.tgi.engine import carry
from corevital.frames.lifecycle import STOP_STRING, CoreFacts, Finished, Observer
from corevital.frames.stamp import Stamp
from corevital.guard import guarded

_DRAIN_S: Final = 1.5
"""How long a shard that shuts down waits for its last sequences to be reported."""


class _Coming(NamedTuple):
    """A request whose batch is being made. Times by both clocks; ``batch`` is the router's span."""

    request: Any
    arrival_ns: int
    arrived: float
    batch: str | None


@dataclass(slots=True, eq=False)
class Sequence:
    """A request that runs.

    Attributes:
        stamp: None where it is not measured.
        request: the router's message.
        arrived: when the shard received it, and its first token, by ``time.monotonic``.
        cached: tokens of its prompt that were in the engine's cache.
        tokens: those that the router was given.
        drafts: of those, accepted drafts.
    """

    request: Any
    arrived: float
    cached: int
    stamp: Stamp | None = None
    first: float | None = None
    tokens: array[int] = field(default_factory=lambda: array("i"))
    drafts: int = 0


class Watch:
    """The sequences of a shard.

    Args:
        observer: called with them.
        model: the shard's.
        content: whether prompt and output text may leave the process.
    """

    def __init__(self, observer: Observer, model: Any, content: bool) -> None:
        self._observer = observer
        self._model = model
        self._content = content
        self._name = secrets.token_hex(4)  # the router counts requests from 0
        self._count = 0
        self._coming: dict[int, _Coming] = {}
        self._live: dict[int, Sequence] = {}  # by the router's ids
        self._members: dict[int, list[int]] = {}  # of each batch
        self.is_serving = False
        """A step is a client's. The requests of a warm-up have the ids of real ones."""
        self.measures = True
        """Whether logits can be read here; if not, no sequence is admitted."""
        Finalize(None, self.close, exitpriority=10)  # before the hub's client ends

    @guarded("the shard's Prefill")
    def arrives(self, request: Any, span: str | None) -> list[int]:
        """``Prefill``: a batch arrives, from a span of the router's. Returns the batches that go into one."""
        batch, now = request.batch, (time.time_ns(), time.monotonic())
        self._members[batch.id] = [request.id for request in batch.requests]
        if self.measures:
            self._coming = {each.id: _Coming(each, *now, span) for each in batch.requests if each.id != names.LIVENESS}
        return [batch.id] + ([request.cached_batch.id] if request.HasField("cached_batch") else [])

    @guarded("the shard's Decode")
    def joins(self, request: Any) -> list[int]:
        """``Decode``: the batches that go into one."""
        return [batch.id for batch in request.batches]

    def admit(self, batch: Any) -> list[Sequence | None]:
        """A batch is about to be computed; its prompts are known now. Returns whose each of its rows is."""
        for row, request in enumerate(batch.requests if self._coming else ()):
            coming = self._coming.pop(request.id, None)
            if coming is not None:
                self._admit(coming, int(_prompt_lengths(batch)[row]))
        return [self._live.get(request.id) for request in batch.requests]

    def _admit(self, coming: _Coming, prompt_tokens: int) -> None:
        request = coming.request
        self._end(request.id, "abort")  # the router has forgotten it
        self._count += 1
        about = admitted(
            request,
            self._model,
            name=f"tgi-{self._name}-{self._count}",
            prompt_tokens=prompt_tokens,
            arrival_ns=coming.arrival_ns,
            batch=coming.batch,
            content=self._content,
        )
        cached = min(int(request.cache_len), max(prompt_tokens - 1, 0))
        sequence = Sequence(request, coming.arrived, cached)
        stamp = self._observer.admit(about)
        if stamp is not None:
            carry(sequence, stamp)
            self._live[request.id] = sequence

    def adds(self, sequence: Sequence, tokens: Iterable[int], reason: int | None) -> None:
        """A step has produced tokens of a sequence, and ended it where there is a ``FinishReason``."""
        before = len(sequence.tokens)
        sequence.tokens.extend(tokens)
        if sequence.first is None and len(sequence.tokens) > 0:
            sequence.first = time.monotonic()
        sequence.drafts += max(len(sequence.tokens) - before - 1, 0)
        if reason is not None:
            self._end(sequence.request.id, names.REASONS.get(reason, "stop"), self._stop_reason(sequence, reason))

    def _stop_reason(self, sequence: Sequence, reason: int) -> str | None:
        if reason == names.EOS_TOKEN:
            return str(sequence.tokens[-1])
        if reason != names.STOP_SEQUENCE:
            return None
        stops = sequence.request.stopping_parameters.stop_sequences
        return str(stops[0]) if self._content and len(stops) == 1 else STOP_STRING

    @guarded("the shard's answer")
    def answered(self, answer: Any, gone: list[int]) -> None:
        """A ``Prefill`` or ``Decode`` has been answered; the batches ``gone`` went into that of the answer."""
        for batch in gone:
            self._members.pop(batch, None)
        if answer.HasField("batch"):
            self._members[answer.batch.id] = list(answer.batch.request_ids)

    @guarded("the shard's error")
    def failed(self, gone: list[int]) -> None:
        """It has failed: the router fails the requests of these batches."""
        if self._coming:  # not even their prompts could be read
            self._observer.unobserved(len(self._coming))
            self._coming = {}
        for batch in gone:
            for request in self._members.pop(batch, ()):
                self._end(request, "error")

    @guarded("the shard's FilterBatch")
    def keeps(self, request: Any) -> None:
        """``FilterBatch``: of a batch only some requests are kept. Others have ended, or their clients have gone."""
        self._keep(request.batch_id, list(request.request_ids))

    @guarded("the shard's ClearCache")
    def clears(self, request: Any) -> None:
        """``ClearCache``: a batch is dropped; all are where it names none."""
        for batch in [request.id] if request.HasField("id") else list(self._members):
            self._keep(batch, [])

    def _keep(self, batch: int, kept: list[int]) -> None:
        for request in set(self._members.get(batch, ())).difference(kept):
            self._end(request, "abort")
        if kept:
            self._members[batch] = kept
        else:
            self._members.pop(batch, None)

    @guarded("the shard's end")
    def close(self) -> None:
        """The shard shuts down: report what still runs, within a bound."""
        for request in list(self._live):
            self._end(request, "abort")
        self._observer.drain(_DRAIN_S)

    def _end(self, request: int, reason: str, stop_reason: str | None = None) -> None:
        sequence = self._live.pop(request, None)
        if sequence is None or sequence.stamp is None:
            return
        now, first = time.monotonic(), sequence.first
        core = CoreFacts(
            prefill_s=None if first is None else first - sequence.arrived,
            decode_s=None if first is None else now - first,
            stop_reason=stop_reason,
            cached_tokens=None if self._model.requires_padding else sequence.cached,
            cached_source="local" if sequence.cached else None,
            accepted_draft_tokens=sequence.drafts if getattr(self._model, "speculate", 0) else None,
        )
        outcome = Finished(reason=reason, token_ids=sequence.tokens, end_ns=time.time_ns(), core=core)
        self._observer.finish(sequence.stamp.key, outcome)


def _prompt_lengths(batch: Any) -> Any:
    """Tokens of each prompt of a batch that is about to be computed for the first time."""
    lengths = getattr(batch, "prompt_lengths", None)
    return batch.input_lengths if lengths is None else lengths
