"""The hub process's metrics on an API server's ``/metrics``.

The hub sends them about once a second, as JSON, and the API server decodes the last ones when it is scraped. So a
scrape never waits for the hub: an engine may answer it in the thread that also streams tokens.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from corevital.guard import faults, guarded
from corevital_otel import conventions as names
from corevital_otel.metrics.exposition import metric_of
from corevital_otel.metrics.instruments import INSTRUMENTS

UP: Final = "corevital_hub_up"
"""Whether the hub process has sent its metrics lately: 1 or 0."""

_FAULTS: Final = INSTRUMENTS[names.TELEMETRY_FAULTS].prometheus

_SILENT_S: Final = 5.0
"""Metrics older than this are not shown: gauges would be wrong, and a scrape without them is seen."""


def encode() -> bytes:
    """The metrics of this process's hub."""
    found = [metric for instrument in INSTRUMENTS.values() for metric in metric_of(instrument).collect()]
    return json.dumps([
        (each.name, each.documentation, each.type, [(one.name, one.labels, one.value) for one in each.samples])
        for each in found
    ]).encode()  # fmt: skip


def decode(body: bytes) -> list[Metric]:
    """The metrics in a message, with this process's own errors among the counted ones.

    Raises:
        ValueError, TypeError: it has none.
    """
    found = []
    for name, text, kind, samples in json.loads(body):
        metric = Metric(name, text, kind)
        own = faults() if name == _FAULTS else 0  # those of this process count too
        for sample, labels, value in samples:
            metric.add_sample(sample, labels, float(value) + (own if sample.endswith("_total") else 0))
        found.append(metric)
    return found


@functools.cache
def hub_metrics() -> HubMetrics:
    """The one of this process, whose engines share a hub."""
    return HubMetrics()


class HubMetrics(Collector):
    """Shows the metrics that the hub has sent last. Any thread may call.

    Args:
        registry: where they are shown; the process's by default, as the engine's own.
        clock: seconds, monotonic.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[float, bytes] | None = None
        registry.register(self)

    def take(self, body: bytes) -> None:
        """Show these metrics from now on."""
        self._last = self._clock(), body

    def describe(self) -> Iterable[Metric]:
        """Their names, which nothing else may register."""
        return [
            GaugeMetricFamily(UP, ""),
            *(Metric(each.prometheus, each.text, each.kind) for each in INSTRUMENTS.values()),
        ]

    def collect(self) -> Iterable[Metric]:
        """The metrics now, and whether the hub sends any. Never raises, never waits."""
        last = self._last
        shown = None
        if last is not None and self._clock() - last[0] <= _SILENT_S:
            shown = guarded("the hub's metrics")(decode)(last[1])
        up = GaugeMetricFamily(
            UP, "Whether the hub process has sent its metrics lately; without it there are none of corevital.",
            value=float(shown is not None),
        )  # fmt: skip
        return [up, *(shown or ())]
