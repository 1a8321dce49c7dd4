"""A report to write and send, for the tests of every output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel.report import Features, Health, RequestReport, Risk, Series
from corevital_otel.spans.emitter import SpanEmitter
from corevital_otel.spans.record import SpanIds

ARRIVAL_NS = 1_790_000_000_000_000_000


def make_report(tokens: int = 3, **changes: Any) -> RequestReport:
    """A report; ``request_id``, ``sequence`` and ``end_ns`` go to their places, anything else replaces a field."""
    admitted = Admitted(
        request_id=changes.pop("request_id", "chatcmpl-1"),
        engine_id="chatcmpl-1-abcd",
        sequence=changes.pop("sequence", 0),
        operation="chat",
        model=changes.pop("model", "tiny"),
        arrival_ns=ARRIVAL_NS,
        prompt_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=20,
        max_tokens=64,
        seed=3,
        engine="vllm",
        engine_version="0.32.0",
        runner="v1",
        stage="raw",
    )
    outcome = Finished(
        reason=changes.pop("reason", "stop"),
        token_ids=tuple(range(tokens)),
        end_ns=changes.pop("end_ns", ARRIVAL_NS + 2_000_000_000),
        cached_tokens=0,
        first_chunk_s=0.25,
    )
    values = np.linspace(0, 1, tokens, dtype=np.float32)
    report = RequestReport(
        admitted=admitted,
        outcome=outcome,
        features=Features(
            tokens=tokens, entropy_mean=0.5, entropy_max=1.0, entropy_std=0.3, entropy_slope=0.1, entropy_sum=1.5,
            surprisal_mean=0.5, surprisal_max=1.0, surprisal_sum=1.5, perplexity=1.4, margin_mean=0.5, margin_min=0.0,
            topk_mass_mean=0.9, confidence_mean=8.0, confidence_min=7.0,
        ),
        health=Health(),
        risk=Risk(score=0.25, level="low", factors=("entropy peak 6.2 bits",)),
        series=Series(entropy=values, surprisal=values, margin=values, topk_mass=values),
        capture="full",
        runner="v1",
        stage="raw",
    )  # fmt: skip
    return dataclasses.replace(report, **changes)


def emit(emitter: SpanEmitter, report: RequestReport) -> SpanIds:
    """Make the span of a report and send it, as the service does."""
    record = emitter.record(report)
    emitter.send(record)
    return record.ids


@pytest.fixture
def report() -> Callable[..., RequestReport]:
    return make_report
