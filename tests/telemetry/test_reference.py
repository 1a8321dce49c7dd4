"""docs/spans.md names all that can be in a trace, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from integration.harness import documented
from integration.harness.collector import Span, collector

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.metrics.instruments import INSTRUMENTS
from corevital_otel.profiles import PROFILES
from corevital_otel.report import Features, Health, RequestReport, Risk
from corevital_otel.spans import SpanEmitter

Make = Callable[..., RequestReport]
REQUEST = ("The request", "Risk and health", "Statistics of the tokens", "How it was measured")
PROFILED = "For one backend"
ENGINE_FACTS = ("corevital.engine.", "corevital.device.")
"""Told by vLLM: integration/test_tracing.py holds the page to them."""


def barest() -> RequestReport:
    return RequestReport(
        admitted=Admitted(request_id="r", engine_id="e", sequence=0, operation="chat", model="m", arrival_ns=1,
                          prompt_tokens=1),
        outcome=Finished(reason="abort", token_ids=(), end_ns=2),
        features=Features(),
        health=Health(),
        risk=Risk(score=None, level="unknown"),
    )  # fmt: skip


def fullest(report: Make) -> RequestReport:
    made = report(
        reason="error",
        incomplete=True,
        health=Health(nan_detected=True, repetition_loop_detected=True, loop_onset=1, loop_period=2, alarm_raised=True,
                      alarm_onset=3, alarm_signal="entropy_max"),
        risk=Risk(score=0.9, level="high", factors=("entropy peak 6.2 bits",)),
    )  # fmt: skip
    admitted = dataclasses.replace(
        made.admitted, tags=("a",), choices=2, stream=True, frequency_penalty=0.5, presence_penalty=0.5,
        prompt_text="p", prompt_hash="h",
    )  # fmt: skip
    unset = (field.name for field in dataclasses.fields(made.features) if getattr(made.features, field.name) is None)
    features = dataclasses.replace(made.features, surprisal_estimated=1, **dict.fromkeys(unset, 0.5))
    return dataclasses.replace(
        made, admitted=admitted, features=features, outcome=dataclasses.replace(made.outcome, text="t")
    )


@pytest.fixture
def sent(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Span]:
    """A report's span as a collector gets it."""

    def send(made: RequestReport, **more: Any) -> Span:
        with collector(tmp_path) as rotel:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.grpc)
            emitter = SpanEmitter(Counters(), **more)
            emitter.emit(made)
            emitter.shutdown(10)
            (span,) = rotel.sink.wait_for(1)
        return span

    return send


def events(span: Span) -> dict[str, Any]:
    return {f"{name} {key}": value for name, attributes in span.events for key, value in attributes.items()}


def test_the_fullest_span_has_what_the_page_names_and_nothing_else(sent: Callable[..., Span], report: Make) -> None:
    span = sent(fullest(report), profiles=PROFILES)
    documented.check(span.attributes, *REQUEST, PROFILED)
    assert span.attributes.keys() == {name for title in (*REQUEST, PROFILED) for name in documented.section(title)}
    documented.check(events(span), "Events")
    assert events(span).keys() == documented.section("Events").keys()


def test_what_is_always_there_is_in_the_barest_span_too(sent: Callable[..., Span]) -> None:
    span = sent(barest(), engine={name.removeprefix("corevital."): 1 for name in documented.section("The resource")
                                  if name.startswith(ENGINE_FACTS)})  # fmt: skip
    documented.check(span.attributes, *REQUEST)
    always = {name for title in REQUEST for name, entry in documented.section(title).items()
              if entry.present == "always"}  # fmt: skip
    assert span.attributes.keys() == always
    assert span.resource.keys() == documented.section("The resource").keys()


def test_every_name_of_ours_is_on_a_page() -> None:
    spelt = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str) and "." in value}
    page = documented.PAGE.read_text()
    assert {name for name in spelt if f"`{name}" not in page} <= set(INSTRUMENTS)
