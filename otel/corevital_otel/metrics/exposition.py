"""The engine's own ``/metrics``, through the process's default Prometheus registry, as the engine's metrics go there.

With several API servers ``PROMETHEUS_MULTIPROC_DIR`` is set before this process starts; then the Prometheus client
keeps values in files that any of the servers adds up when it is asked. Both shapes need instruments of the client's
own, no collector of ours: in the second one nobody would ask it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from prometheus_client import Counter, Gauge, Histogram

from corevital_otel.metrics.instruments import INSTRUMENTS, Instrument


@functools.cache
def _metric(instrument: Instrument) -> Counter | Gauge | Histogram:
    """The registered metric: one a process, whose engine may be made anew and get a new hub."""
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
            _metric(instrument)

    def put(self, instrument: Instrument, value: float, labels: Mapping[str, str], context: Context) -> None:
        """See :meth:`Output.put`. The Prometheus client's text format has no exemplars."""
        key = (instrument.name, tuple([labels[name] for name in instrument.labels]))
        child = self._children.get(key)
        if child is None:  # kept: looking one up costs the client as much as what is done with it
            metric: Any = _metric(instrument)
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
