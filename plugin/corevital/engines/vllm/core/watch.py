"""What the engine core shows of its requests: admission, first scheduling, first token, end.

A request that a frontend of this deployment has stamped stays that frontend's: the core adds what only it knows
(:class:`CoreFacts`). A request without a stamp is admitted, stamped and finished here. A client can write something
like a stamp, but only our frontends can make its proof. The stamp alone decides which of the two a request is.

Every method is called in the core's thread, a few times in a request's life or once a step; none raises or waits.
"""

from __future__ import annotations

import functools
import hmac
import os
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from corevital.engines.protocol import CoreHost
from corevital.engines.vllm import nan_counts, request_args
from corevital.engines.vllm.core import describe
from corevital.engines.vllm.core.stops import Stops
from corevital.engines.vllm.facts import runner, served_name
from corevital.engines.vllm.request_facts import accepted_drafts, cached_source
from corevital.engines.vllm.stamps import EXTRA_ARG, carry
from corevital.frames import stamp as stamps
from corevital.frames.engine_key import engine_key
from corevital.frames.lifecycle import CoreFacts, Finished
from corevital.frames.stamp import Stamp
from corevital.frames.wire import is_here
from corevital.guard import guarded
from corevital.log import warn_once
from corevital.supported import stopped_by

_DRAIN_S: Final = 1.5
"""How long a core that shuts down waits for its last sequences to be reported."""

_LOOK_S: Final = 5.0
"""Between two checks whether a frontend's hub is on this host."""

_MOST_SEEN: Final = 1024
"""Frontends whose looks are remembered."""

_LONGEST: Final = 1 << 20
"""Tokens of a sequence that are sent to the hub: 4 MiB, one part of a message. A longer one is incomplete."""


@dataclass(slots=True)
class _Live:
    """A sequence in the core. Times by ``time.monotonic``.

    Attributes:
        stamp: its stamp, ours or a frontend's.
        is_ours: the core reports it; if False, a frontend does.
        added: when it arrived.
        scheduled: when it was first scheduled.
        first: when it had its first token.
        cached: prompt tokens that were not computed, from the engine's own cache and from elsewhere.
    """

    stamp: Stamp
    is_ours: bool
    added: float
    scheduled: float | None = None
    first: float | None = None
    cached: tuple[int, int] | None = None


class Watch:
    """Watches one scheduler.

    Args:
        scheduler: vLLM's.
        config: its ``VllmConfig``.
        host: the telemetry half.
        clock: seconds, monotonic.
    """

    def __init__(
        self, scheduler: Any, config: Any, host: CoreHost, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._requests = scheduler.requests
        self._hub = host.hub
        self._describe = functools.partial(
            describe.admitted, config, hash_key=host.hash_key, model=served_name(config.model_config)
        )
        self._clock = clock
        self._stop_on = host.stop_on
        self._stops = None if host.loop_check is None else Stops(scheduler, host.loop_check)
        self._counts_nans = nan_counts.are_on() or runner(config) == "v1"
        self._key = engine_key()
        self._proof = functools.lru_cache(maxsize=256)(self._key.proof)
        self._rank = describe.data_parallel_rank(config)
        self._live: dict[str, _Live] = {}  # by the engine's id
        self._silent: set[str] = set()  # of those, scheduled ones without a token yet
        self._seen: dict[str, tuple[bool, float]] = {}  # by server: whether it is on this host, and when checked
        if self._key.trusts_unproven or self._key.hub.tcp or os.environ.get("VLLM_USE_RUST_FRONTEND", "0") != "0":
            self._hub.want()  # so that its port is open before the first request

    @guarded("the core's add_request")
    def adds(self, request: Any, *_args: Any, **_kwargs: Any) -> None:
        """A request arrives; the workers do not have it yet."""
        params = request.sampling_params
        if params is None:  # pooling
            return
        stamp = stamps.peek((params.extra_args or {}).get(EXTRA_ARG))
        if stamp is not None and self._is_of_a_frontend(stamp):
            self._note(request, stamp, params)
            return
        carry(params, None)  # at once: a client may have sent one, and what follows may fail
        if request.request_id in self._requests or getattr(request, "resumable", False):
            self._hub.unobserved(1)
            warn_once(
                "core session",
                "a session with streamed input is not measured with this frontend: use vLLM's Python API server",
            )
            return
        if getattr(request, "abort_immediately", False):  # a router cancels what it sent to the other leg
            return
        kind = describe.internal(request)
        stamp = None
        if kind is not None:
            self._hub.internal(kind)
        else:
            stamp = self._hub.admit(self._describe(request))
        carry(params, stamp)
        if stamp is not None:
            self._live[request.request_id] = _Live(stamp, True, self._clock())
            self._may_stop(request, stamp, params)

    def _may_stop(self, request: Any, stamp: Stamp, params: Any) -> None:
        """Have a request that is measured ended early, if it or the server's settings ask for that."""
        on = self._stop_on
        if (params.extra_args or {}).get(request_args.STOP_ON) is not None:
            own = request_args.read_valid(params.extra_args).stop_on
            on = on if own is None else own
        if not on or self._stops is None or getattr(request, "resumable", False):
            return
        if "nan" in on and not self._counts_nans:
            warn_once(
                "stop on nan",
                "a request's corevital_stop_on=nan has no effect with Model Runner V2: start vLLM with "
                "COREVITAL_STOP_ON=nan",
            )
        self._stops.ask(request.request_id, on)
        if "alarm" in on:
            self._hub.watch(stamp, functools.partial(self._stops.order, request.request_id, "alarm"))

    def _note(self, request: Any, stamp: Stamp, params: Any) -> None:
        """A request that one of our frontends has stamped, or left out."""
        if stamp.is_left_out:
            return
        if self._can_reach(stamp.server):
            stamps.parse(str(stamp))  # so that this process can send there too
            if request.request_id not in self._live:
                self._live[request.request_id] = _Live(stamp, False, self._clock())
                self._may_stop(request, stamp, params)
            return
        carry(params, None)
        self._hub.unobserved(1)
        warn_once(
            "core unreachable",
            "requests of a frontend on another host are not measured, and it reports them as incomplete: set "
            "COREVITAL_HUB=tcp://HOST:PORT, with HOST the frontend's, and the same COREVITAL_HUB_KEY on all hosts",
        )

    def _is_of_a_frontend(self, stamp: Stamp) -> bool:
        if hmac.compare_digest(stamp.proof, self._proof(stamp.server)):
            return True
        return self._key.trusts_unproven and bool(stamp.proof)

    def _can_reach(self, server: str) -> bool:
        """Whether frames reach a frontend: its hub is on this host, or the deployment's hub forwards them.

        The deployment's own hub process counts as there: it may be restarting.
        """
        if self._key.hub.tcp is not None or server == self._key.hub.server:
            return True
        known, looked_at = self._seen.get(server, (False, -_LOOK_S))
        now = self._clock()
        if now - looked_at >= _LOOK_S:
            if len(self._seen) >= _MOST_SEEN:  # without a key, a client can name any
                self._seen.clear()
            known = is_here(server)
            self._seen[server] = known, now
        return known

    @guarded("the core's schedule")
    def scheduled(self, output: Any) -> None:
        """A step is scheduled: record the time for each new request, and how much of its prompt was cached."""
        for new in output.scheduled_new_reqs:
            live = self._live.get(new.req_id)
            if live is None or live.scheduled is not None:
                continue
            live.scheduled = self._clock()
            self._silent.add(new.req_id)
            stats = getattr(self._requests.get(new.req_id), "prefill_stats", None)
            if stats is not None:
                live.cached = stats.num_local_cached_tokens, stats.num_external_cached_tokens

    @guarded("the core's update_from_output")
    def updated(self) -> None:
        """A step has produced its tokens: record the time of first ones."""
        if not self._silent:
            return
        now = self._clock()
        for engine_id in list(self._silent):
            request = self._requests.get(engine_id)
            if request is None or request.num_output_tokens > 0:
                self._silent.discard(engine_id)
                live = self._live.get(engine_id)
                if live is not None and live.first is None:
                    live.first = now

    @guarded("the core's _free_request")
    def frees(self, request: Any) -> None:
        """A request has ended, for any reason."""
        reason = request.get_finished_reason()
        self._end(request, "abort" if reason is None else str(reason))

    def _end(self, request: Any, reason: str) -> None:
        live = self._live.pop(request.request_id, None)
        self._silent.discard(request.request_id)
        if live is None:
            return
        if self._stops is not None and self._stops.drop(request.request_id):
            self._hub.unwatch(live.stamp.key)
        facts = self._facts(live, request)
        if not live.is_ours:
            self._hub.facts(live.stamp, facts)
            return
        tokens = array("i", request.output_token_ids[:_LONGEST])
        waited = max(time.time() - request.arrival_time, 0.0) - (self._clock() - live.added)  # before it arrived here
        outcome = Finished(
            reason=reason,
            token_ids=tokens,
            end_ns=time.time_ns(),
            cached_tokens=facts.cached_tokens,
            first_chunk_s=None if live.first is None else max(waited, 0.0) + live.first - live.added,
            core=facts,
            stop_rule=describe.stop_rule(request) if reason == "abort" else None,
        )
        self._hub.finish(live.stamp.key, outcome)

    def _facts(self, live: _Live, request: Any) -> CoreFacts:
        now = self._clock()
        first = now if live.first is None and request.num_output_tokens > 0 else live.first  # it ended with its first
        local, external = live.cached or (0, 0)
        stop = getattr(request, "stop_reason", None)
        return CoreFacts(
            queue_s=None if live.scheduled is None else live.scheduled - live.added,
            prefill_s=None if first is None or live.scheduled is None else first - live.scheduled,
            decode_s=None if first is None else now - first,
            preemptions=getattr(request, "num_preemptions", None),
            data_parallel_rank=self._rank,
            # another string would be the client's text
            stop_reason=str(stop) if isinstance(stop, int) or stopped_by(stop) else None,
            cached_tokens=None if live.cached is None else local + external,
            cached_source=cached_source(local, external),
            accepted_draft_tokens=accepted_drafts(request),
        )

    @guarded("the core's shutdown")
    def ends(self, *_args: Any, **_kwargs: Any) -> None:
        """The core shuts down, or has failed: finish its sequences, and wait for their reports within a bound."""
        reason = "error" if isinstance(sys.exc_info()[1], Exception) else "abort"
        for engine_id in list(self._live):
            request = self._requests.get(engine_id)
            if request is not None:
                self._end(request, reason)
        self._hub.drain(_DRAIN_S)
        self._hub.close()
