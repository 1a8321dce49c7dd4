"""docs/understand/spans.md names all that can be in a trace, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from tests.conftest import emit
from tests.harness import documented
from tests.harness.collector import Span, collector

from corevital.frames.lifecycle import Admitted, CoreFacts, Finished
from corevital_otel import conventions as names
from corevital_otel.counters import Counters
from corevital_otel.metrics.instruments import INSTRUMENTS
from corevital_otel.report import Assessed, Features, Health, Part, RequestReport, Risk, Segments
from corevital_otel.settings import BACKENDS
from corevital_otel.spans.attributes import span_attributes
from corevital_otel.spans.emitter import SpanEmitter

Make = Callable[..., RequestReport]
REQUEST = ("The request", "In the engine", "Risk and health", "Statistics of the tokens", "Parts of the output",
           "How it was measured")  # fmt: skip
PROFILED = "For one backend"
ENGINE_FACTS = ("corevital.engine.", "corevital.device.")
"""From vLLM: integration/tests/test_tracing.py checks them against the page."""


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
                      template_detected=True, template_onset=3, template_period=4, alarm_onset=3,
                      alarm_signal="entropy_max"),
        risk=Risk(score=0.9, level="high", factors=("entropy peak 6.2 bits",)),
    )  # fmt: skip
    admitted = dataclasses.replace(
        made.admitted, tags=("a",), choices=2, stream=True, frequency_penalty=0.5, presence_penalty=0.5,
        prompt_text="p", prompt_hash="h", stop_sequences=("END",), role="prefill", prefill_id="e", transfer_id="t",
        batch="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )  # fmt: skip
    core = CoreFacts(
        queue_s=0.1, prefill_s=0.2, decode_s=0.3, preemptions=1, data_parallel_rank=0, stop_reason="2",
        cached_tokens=4, cached_source="mixed", accepted_draft_tokens=5,
    )  # fmt: skip
    unset = (field.name for field in dataclasses.fields(made.features) if getattr(made.features, field.name) is None)
    known: dict[str, Any] = dict.fromkeys(unset, 0.5)
    features = dataclasses.replace(made.features, surprisal_estimated=1, forced=3, **known)
    part = Part(tokens=3, entropy_mean=0.5, surprisal_mean=0.5)
    parts = Segments(reasoning=part, answer=part, tool_call=part,
                     assessed=Assessed(segment="answer", features=features))  # fmt: skip
    return dataclasses.replace(
        made,
        admitted=admitted,
        features=features,
        segments=parts,
        admission=dataclasses.replace(made.admission, drawn=False),
        outcome=dataclasses.replace(made.outcome, text="t", reasoning_tokens=2, core=core),
    )


@pytest.fixture
def sent(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Span]:
    """A report's span as a collector gets it."""

    def send(made: RequestReport, **more: Any) -> Span:
        with collector(tmp_path) as rotel:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.grpc)
            emitter = SpanEmitter(Counters(), **more)
            emit(emitter, made)
            emitter.shutdown(10)
            (span,) = rotel.sink.wait_for(1)
        return span

    return send


def events(span: Span) -> dict[str, Any]:
    return {f"{name} {key}": value for name, attributes in span.events for key, value in attributes.items()}


def test_the_fullest_span_has_what_the_page_names_and_nothing_else(sent: Callable[..., Span], report: Make) -> None:
    span = sent(fullest(report), backends=BACKENDS)
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


def test_a_span_has_no_more_attributes_than_backends_keep(sent: Callable[..., Span], report: Make) -> None:
    made = fullest(report)
    assert {names.ASSESSED_PREFIX + "entropy.max", names.RISK_SEGMENT} <= span_attributes(made).keys()
    span = sent(made, backends=BACKENDS)
    assert not [name for name in span.attributes if name.startswith(names.ASSESSED_PREFIX)], "for the store alone"
    assert len(span.attributes) < 128
