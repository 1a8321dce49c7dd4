"""What the engine's core knows of a sequence, on its span and in its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corevital.frames.lifecycle import STOP_STRING, CoreFacts
from corevital_otel.counters import Counters
from corevital_otel.report import RequestReport
from corevital_otel.spans.attributes import span_attributes
from corevital_otel.spans.record import SpanIds, record_of
from corevital_otel.store.reader import StoreReader
from corevital_otel.store.writer import StoreWriter

Make = Callable[..., RequestReport]
CACHED = "gen_ai.usage.cache_read.input_tokens"
FACTS = {
    "corevital.queue_s": 0.5,
    "corevital.prefill_s": 0.25,
    "corevital.decode_s": 2.0,
    "corevital.preemptions": 0,
    "corevital.data_parallel_rank": 3,
    "corevital.stop_reason": "7",
    "corevital.cached_tokens.source": "mixed",
    "corevital.draft.accepted_tokens": 12,
}


def with_core(report: RequestReport, core: CoreFacts, **changes: Any) -> RequestReport:
    return replace(report, outcome=replace(report.outcome, core=core, **changes))


def full() -> CoreFacts:
    return CoreFacts(
        queue_s=0.5, prefill_s=0.25, decode_s=2.0, preemptions=0, data_parallel_rank=3, stop_reason="7",
        cached_tokens=4, cached_source="mixed", accepted_draft_tokens=12,
    )  # fmt: skip


def test_each_fact_is_an_attribute(report: Make) -> None:
    found = span_attributes(with_core(report(), full()))
    assert {name: found[name] for name in FACTS} == FACTS


def test_what_the_core_does_not_say_is_absent(report: Make) -> None:
    found = span_attributes(with_core(report(), CoreFacts(queue_s=float("nan"))))
    assert not found.keys() & {*FACTS, "corevital.role"}


@pytest.mark.parametrize(
    ("frontends", "cores", "shown"), [(0, 4, 4), (6, 0, 0), (6, None, 6), (None, 4, 4), (None, None, None)]
)
def test_cached_tokens_are_the_cores_else_the_frontends(
    frontends: int | None, cores: int | None, shown: int | None, report: Make
) -> None:
    found = span_attributes(with_core(report(), CoreFacts(cached_tokens=cores), cached_tokens=frontends))
    assert found.get(CACHED) == shown


def test_a_prefill_leg_has_its_role(report: Make) -> None:
    made = report()
    leg = replace(made, admitted=replace(made.admitted, role="prefill"))
    assert span_attributes(leg)["corevital.role"] == "prefill"


def test_the_stores_summary_has_the_same(report: Make, tmp_path: Path) -> None:
    path = tmp_path / "corevital.db"
    writer = StoreWriter(path, 36500, 1024, Counters())
    writer.put(record_of(with_core(report(), replace(full(), stop_reason=STOP_STRING)), SpanIds("1" * 32, "1" * 16)))
    writer.close(10)
    (row,) = StoreReader(path).list_reports()
    assert {name: row.summary[name] for name in FACTS} == {**FACTS, "corevital.stop_reason": "stop_string"}
