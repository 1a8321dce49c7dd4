"""The engine's ``/metrics``, through the process's default Prometheus registry, as the engine's own metrics.

With several API servers ``PROMETHEUS_MULTIPROC_DIR`` is set before this process starts; then the Prometheus client
keeps values in files, and the server that is scraped adds them up. Both cases need the client's instruments instead of
a collector of ours, which would not be called in the second one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from prometheus_client import Counter, Gauge, Histogram

from corevital_otel.metrics.instruments import INSTRUMENTS, Instrument


@functools.cache
def metric_of(instrument: Instrument) -> Counter | Gauge | Histogram:
    """The registered metric: one per process, whose engine may be replaced and get another hub."""
    name, text = instrument.prometheus, instrument.text
    labels = [label.replace(".", "_") for label in instrument.labels]
    if instrument.kind == "counter":
        return Counter(name, text, labels)
    if instrument.kind == "histogram":
        return Histogram(name, text, labels, buckets=instrument.buckets)
    return Gauge(name, text, labels, multiprocess_mode="livesum")


class Exposition:
    """Output to ``/metrics``."""

    def __init__(self) -> None:
        self._gauges: dict[tuple[str, tuple[str, ...]], float] = {}
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}  # Counter, Gauge or Histogram
        for instrument in INSTRUMENTS.values():
            metric_of(instrument)

    def put(self, instrument: Instrument, value: float, labels: Mapping[str, str], context: Context) -> None:
        """See :meth:`Output.put`. The Prometheus client's text format has no exemplars."""
        key = (instrument.name, tuple([labels[name] for name in instrument.labels]))
        child = self._children.get(key)
        if child is None:  # kept: looking it up costs as much as using it
            metric: Any = metric_of(instrument)
            child = self._children[key] = metric.labels(*key[1]) if key[1] else metric
        if instrument.kind == "counter":
            child.inc(value)
        elif instrument.kind == "histogram":
            child.observe(value)
        else:  # by difference: two engines in one process add up
            child.inc(value - self._gauges.get(key, 0.0))
            self._gauges[key] = value

    def close(self, timeout_s: float) -> None:
        """See :meth:`Output.close`."""
        for key, value in self._gauges.items():
            self._children[key].dec(value)
        self._gauges.clear()
