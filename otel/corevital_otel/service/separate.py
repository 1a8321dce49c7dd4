"""Telemetry behind an API server in a separate process: hands the engine's requests to the deployment's hub process.

Only what needs the request's own task happens in the API server: the parent of its span, and whether it is drawn. Spans
of requests over HTTP are made here, as an instrumentation of the server does it, and sent to the hub when they end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from corevital.frames.lifecycle import Admitted, Finished, Observer
from corevital.frames.remote_hub import RemoteHub
from corevital.frames.stamp import Stamp
from corevital.guard import guarded
from corevital_otel.metrics.families import hub_metrics
from corevital_otel.otlp import sampler
from corevital_otel.otlp.resource import Facts
from corevital_otel.sampling import Sampler, with_draw
from corevital_otel.service.keeper import HubKeeper
from corevital_otel.settings import Settings
from corevital_otel.spans.emitter import span_limits
from corevital_otel.spans.http_context import follow_requests
from corevital_otel.spans.http_server import Drawn, HttpInstrumentation, Posting
from corevital_otel.spans.random_ids import RandomIds

_SHARED_METRICS: Final = "PROMETHEUS_MULTIPROC_DIR"
"""An engine sets it for several API servers, whose ``/metrics`` calls no collector of ours."""


def obstacle(settings: Settings, engine_endpoint: str | None, on_report: Callable[..., object] | None) -> str | None:
    """Why telemetry of this engine stays in its frontend's process; None: it can be a separate one."""
    if on_report is not None:
        return "the program receives the reports itself"
    if settings.hub is not None:
        return "COREVITAL_HUB is set"
    if engine_endpoint is not None:
        return "the engine's own tracing is on"
    if _SHARED_METRICS in os.environ:
        return f"several API servers share {_SHARED_METRICS}"
    return None


class Handover:
    """Implements :class:`corevital.frames.lifecycle.Observer`: hands sequences to a hub process.

    Args:
        hub: the way there.
        sampler: draws the requests.
    """

    def __init__(self, hub: RemoteHub, sampler: Sampler) -> None:
        self._hub = hub
        self._sampler = sampler

    @property
    def left_out(self) -> Stamp:
        """See :attr:`Observer.left_out`."""
        return self._hub.left_out

    def admit(self, request: Admitted) -> Stamp | None:
        """See :meth:`Observer.admit`; called inside the request's task, whose trace context becomes the parent."""
        if request.sample is False:
            return None
        return self._hub.admit(with_draw(request, self._sampler.admit(request, context.get_current())))

    def finish(self, key: int, outcome: Finished) -> None:
        """See :meth:`Observer.finish`."""
        self._hub.finish(key, outcome)

    def internal(self, kind: str) -> None:
        """See :meth:`Observer.internal`."""
        self._hub.internal(kind)

    def unobserved(self, sequences: int) -> None:
        """See :meth:`Observer.unobserved`."""
        self._hub.unobserved(sequences)

    def drain(self, timeout_s: float) -> bool:
        """See :meth:`Observer.drain`."""
        return self._hub.drain(timeout_s)


def start(
    attach: Callable[[Observer, Settings], bool],
    settings: Settings,
    model: str,
    facts: Facts,
    kernel: str,
    tokenizer: tuple[str, str | None] = ("", None),
    *,
    exports: bool,
) -> Callable[[], None] | None:
    """Measure an engine's requests in a hub process. See :func:`corevital_otel.service.startup.start`.

    Args:
        attach, model, facts, kernel, tokenizer: see there.
        settings: the server's.
        exports: spans are sent somewhere.
    """
    keeper = HubKeeper(model, facts, kernel, has_port=False)
    metrics = guarded("the start of /metrics")(hub_metrics)()
    hub = RemoteHub(*tokenizer, wanted=keeper.start, metrics=None if metrics is None else metrics.take)
    choice = sampler.choose(settings)
    draws = Sampler(choice.rate, by_trace_id=choice.by_trace_id, obeys_caller=choice.obeys_caller)

    def close() -> None:
        hub.close()
        keeper.close()

    if not attach(Handover(hub, draws), settings):
        close()
        return None
    spans = HttpInstrumentation(_provider(draws, hub.span if exports else None))
    follow_requests(spans.instrument if settings.http_spans else None)
    hub.want()
    return close


def _provider(draws: Sampler, post: Callable[[Any], None] | None) -> TracerProvider:
    """Makes the spans of requests over HTTP. The hub adds its resource."""
    provider = TracerProvider(
        sampler=Drawn(draws),
        resource=Resource.get_empty(),
        shutdown_on_exit=False,
        span_limits=span_limits(),
        id_generator=RandomIds(),
    )
    if post is not None:
        provider.add_span_processor(Posting(post))
    return provider
