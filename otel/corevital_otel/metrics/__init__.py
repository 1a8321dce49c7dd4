"""Metrics: one table of instruments, two outputs made from it.

- :mod:`corevital_otel.metrics.instruments`: the table.
- :mod:`corevital_otel.metrics.recorder`: what a report and the telemetry itself put into which instrument.
- :mod:`corevital_otel.metrics.exposition`: the engine's own ``/metrics``.
- :mod:`corevital_otel.metrics.otlp`: OTLP, with the sums of :mod:`corevital_otel.metrics.histograms`.

All of it happens in the hub's thread; a request never waits for a metric.
"""
