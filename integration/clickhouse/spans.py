"""Spans of a small fleet in the last hours, made by our emitter and sent over OTLP/HTTP."""

from __future__ import annotations

import dataclasses
import os
import time
from unittest import mock

import numpy as np
from integration.bench.store import make_report
from tests.harness.collector import Sink, Span

from corevital_otel.counters import Counters
from corevital_otel.report import Health, RequestReport, Risk, Series
from corevital_otel.spans.emitter import SpanEmitter

SERVERS = tuple(f"server-{letter}" for letter in "abcdef")
MODELS = ("small", "large")
TENANTS = ("tenant:acme", "tenant:globex")
HOURS = 8
LOOPING = "server-c"
TOKENS = 300
"""Of a request with a series: two events."""


def report(number: int, server: str, count: int, random: np.random.Generator) -> RequestReport:
    """The report of one request of a server. A tenth is at high risk, with its series."""
    made = make_report(number)
    age_s = HOURS * 3600 * (1 - number / count) + 60
    for edge_s in (3 * 3600, 6 * 3600):  # of the page's windows: none crosses one while the statements run
        if edge_s - 120 < age_s <= edge_s + 1:
            age_s = edge_s + 2
    start = time.time_ns() - int(age_s * 1e9)
    score = float(random.random())
    high = score >= 0.9
    values = random.random(TOKENS).astype(np.float32)
    series = Series(entropy=values, surprisal=values, margin=values, topk_mass=values)
    tokens = int(random.integers(5, 400))
    return dataclasses.replace(
        made,
        admitted=dataclasses.replace(
            made.admitted, request_id=f"chatcmpl-{number}", model=MODELS[SERVERS.index(server) % 2], arrival_ns=start,
            tags=(TENANTS[number % 3],) if number % 3 < 2 else (),
        ),
        outcome=dataclasses.replace(
            made.outcome, token_ids=range(tokens), end_ns=start + int(random.integers(1, 5000)) * 10**6,
            first_chunk_s=float(random.exponential(0.3)),
        ),
        features=dataclasses.replace(made.features, tokens=tokens, entropy_mean=float(random.normal(1.5, 0.3))),
        health=Health(repetition_loop_detected=bool(random.random() < (0.3 if server == LOOPING else 0.02))),
        risk=Risk(score=score, level="high" if high else "low", factors=("entropy peak 6.2 bits",)),
        series=series if high or not number else None,
    )  # fmt: skip


def export(count: int) -> list[Span]:
    """Send so many spans; returns them as they arrived.

    Raises:
        RuntimeError: not all of them arrived.
    """
    sink, random = Sink(), np.random.default_rng(0)
    try:
        for at, server in enumerate(SERVERS):
            variables = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.port}",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_SERVICE_NAME": "vllm",
                "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={server}",
                "OTEL_BSP_MAX_QUEUE_SIZE": str(count),
            }
            with mock.patch.dict(os.environ, variables):
                emitter = SpanEmitter(Counters())
                for number in range(at, count, len(SERVERS)):
                    emitter.send(emitter.record(report(number, server, count, random)))
                emitter.shutdown(60)
        if len(sink.spans) != count:
            raise RuntimeError(f"{len(sink.spans)} of {count} spans arrived")
        return sink.spans
    finally:
        sink.close()
