"""What vLLM's frontend learns of one sequence from the engine's core: phases, preemptions, why it stopped, its cache.

Times need vLLM's statistics, which ``--disable-log-stats`` and offline ``LLM`` leave out. The rest comes with the
core's outputs always. What the core itself reports takes precedence over all of it.
"""

from __future__ import annotations

import weakref
from typing import Any

from corevital.frames.lifecycle import STOP_STRING, CoreFacts
from corevital.guard import guarded


class RequestFacts:
    """The facts of one sequence while it is in the engine.

    Args:
        state: vLLM's ``RequestState``.
        content: whether a stop string, which is the client's text, may leave the process.
        data_parallel_rank: the rank that the client asked for.
    """

    __slots__ = ("_cached", "_drafts", "_rank", "_source", "_stopped_by", "_text")

    def __init__(self, state: Any, *, content: bool, data_parallel_rank: int | None = None) -> None:
        self._rank = data_parallel_rank
        self._stopped_by: int | str | None = None
        self._cached: int | None = None
        self._source: str | None = None
        self._drafts: int | None = None
        self._text: list[str] = []
        detokenizer = getattr(state, "detokenizer", None)
        if getattr(detokenizer, "stop", None):
            _note_stop_string(detokenizer, self._text, content)

    def take(self, output: Any) -> None:
        """An ``EngineCoreOutput`` of the sequence: its first one, its last one, or any."""
        prefill = getattr(output, "prefill_stats", None)
        if prefill is not None:
            self._cached = prefill.num_cached_tokens
            self._source = cached_source(prefill.num_local_cached_tokens, prefill.num_external_cached_tokens)
        if output.finish_reason is not None:
            self._stopped_by = output.stop_reason
            self._drafts = accepted_drafts(output)

    def core(self, state: Any) -> CoreFacts:
        """The facts, at the sequence's end; none after an error, which must not keep the end from being reported.

        Args:
            state: the same ``RequestState``.
        """
        return self._core(state) or CoreFacts()

    @guarded("the facts of a request")
    def _core(self, state: Any) -> CoreFacts:
        queue_s, prefill_s, decode_s = _phases(state.stats)
        engines = None if self._stopped_by is None else str(self._stopped_by)
        return CoreFacts(
            queue_s=queue_s,
            prefill_s=prefill_s,
            decode_s=decode_s,
            preemptions=getattr(state.stats, "num_preemptions", None),
            data_parallel_rank=self._rank,
            stop_reason=self._text[-1] if self._text else engines,
            cached_tokens=self._cached,
            cached_source=self._source,
            accepted_draft_tokens=self._drafts,
        )


@guarded("the note of a stop string")
def _note_stop_string(detokenizer: Any, found: list[str], content: bool) -> None:
    """Have a detokenizer note the stop string that it finds: it returns it to its caller and keeps it nowhere.

    On the one instance, and only where a request has stop strings. What is put there does not hold the detokenizer: in
    a cycle a finished request would stay until the garbage collector comes by.
    """
    update = getattr(type(detokenizer), "update", None)
    if update is None:
        return
    itself = weakref.ref(detokenizer)

    def noting(*args: Any, **kwargs: Any) -> Any:
        stop_string = update(itself(), *args, **kwargs)
        if stop_string:
            found.append(str(stop_string) if content else STOP_STRING)
        return stop_string

    detokenizer.update = noting


def _phases(stats: Any) -> tuple[float | None, float | None, float | None]:
    """Seconds in the queue, until the first token, and from there to the last; None where it came to no such phase.

    A session whose input comes in parts has the times of different parts, which belong to no one phase.
    """
    queued, scheduled, first, last = (
        getattr(stats, name, 0.0) for name in ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
    )
    if not 0 < queued <= scheduled:
        return None, None, None
    if not stats.num_generation_tokens or not scheduled <= first <= last:  # an end without a token has a time too
        return scheduled - queued, None, None
    return scheduled - queued, first - scheduled, last - first


def accepted_drafts(seen: Any) -> int | None:
    """Draft tokens that were accepted, of a ``Request`` or an ``EngineCoreOutput``.

    None where vLLM does not count them: it does with ``--per-request-spec-decode-metrics``.
    """
    histogram = getattr(getattr(seen, "spec_decode_metrics", None), "histogram", None)
    return None if histogram is None else sum(accepted * steps for accepted, steps in enumerate(histogram))


def cached_source(local: int, external: int) -> str | None:
    """Where cached tokens came from; None where there are none."""
    if local and external:
        return "mixed"
    return "local" if local else "external" if external else None
