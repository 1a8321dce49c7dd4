"""What the Collector's policies and filters keep of spans that we really sent, by a stand-in for both processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.trace import SpanContext, TraceFlags
from tests.conftest import emit
from tests.harness.collector import Sink, Span
from tests.harness.collector_files import holds, load, matches, sent, stack

from corevital_otel.counters import Counters
from corevital_otel.report import Admission, Health, RequestReport, Risk
from corevital_otel.spans.emitter import SpanEmitter

Send = Callable[..., Span]
POLICIES = load("collector.yaml")["processors"]["tail_sampling"]["policies"]
HIGH = {"risk": Risk(score=0.9, level="high")}


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    running = Sink()
    yield running
    running.close()


@pytest.fixture
def send(sink: Sink, monkeypatch: pytest.MonkeyPatch, report: Callable[..., RequestReport]) -> Send:
    """Sends the span of a report over OTLP/HTTP, in a trace by its number, and returns it as it arrived."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{sink.port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")

    def sent_span(trace: int = 1, **changes: Any) -> Span:
        caller = SpanContext(trace << 64 | trace << 31, 7, is_remote=True, trace_flags=TraceFlags(1))
        emitter = SpanEmitter(Counters())
        ids = emit(emitter, report(admission=Admission(parent=caller), **changes))
        emitter.shutdown(5)
        return next(span for span in sink.spans if span.span_id == ids.span_id)

    return sent_span


CASES = pytest.mark.parametrize(
    ("made", "policies"),
    [
        ({"risk": Risk(score=0.71, level="high")}, {"risk-score", "risk-level"}),
        ({"risk": Risk(score=0.4, level="high")}, {"risk-level"}),  # by the user's own threshold
        ({"health": Health(nan_detected=True)}, {"nan"}),
        ({"health": Health(inf_detected=True)}, {"inf"}),
        ({"health": Health(repetition_loop_detected=True)}, {"loop"}),
        ({"health": Health(sustained_high_entropy=True)}, {"high-entropy"}),
        ({"health": Health(distribution_collapsed=True)}, {"collapsed"}),
        ({"health": Health(alarm_raised=True, alarm_onset=3, alarm_signal="entropy_max")}, {"alarm"}),
        ({"health": Health(alarm_signal="entropy_max")}, set()),
        ({"health": Health(traffic_shifted=True)}, set()),
        ({"incomplete": True}, {"incomplete"}),
        ({"reason": "error"}, {"error"}),
        ({"risk": Risk(score=0.2, level="low"), "health": Health(truncated=True)}, set()),
        ({"risk": Risk(score=None, level="unknown")}, set()),
    ],
    ids=lambda value: "-".join(sorted(value)) or "none" if isinstance(value, set) else "",
)


@CASES
def test_policies_keep_each_span_at_risk(send: Send, made: dict[str, Any], policies: set[str]) -> None:
    span = send(**made)
    assert {policy["name"] for policy in POLICIES if matches(policy, [span], 0)} == policies


@CASES
def test_a_span_passes_one_of_the_two_filters(send: Send, made: dict[str, Any], policies: set[str]) -> None:
    span, filters = send(**made), load("collector.yaml")["processors"]
    ((dropped_if,), rest) = (filters[name]["trace_conditions"] for name in ("filter/at-risk", "filter/rest"))
    at_risk = not holds(dropped_if, span)
    assert at_risk == bool(policies)
    assert at_risk == any(holds(condition, span) for condition in rest), "it would be sent twice, or never"


LONG: list[tuple[float, dict[str, Any]]] = [
    (0.0, {}),
    (200.0, {}),
    (590.0, HIGH),
    (595.0, {}),
    (600.0, {"health": Health(nan_detected=True)}),
]
"""A trace of an agent: arrival in seconds, and what its request is. The decision on it falls after 30 s."""


def test_late_spans_at_risk_of_a_long_trace_are_kept_once(send: Send) -> None:
    arrivals = [(at, send(**made)) for at, made in LONG]
    kept = sent(stack("tempo"), arrivals)["otlp_grpc/tempo"]
    assert [span.span_id for span in kept] == [arrivals[2][1].span_id, arrivals[4][1].span_id]


def test_without_the_pipeline_of_its_own_they_would_be_lost(send: Send) -> None:
    config = stack("tempo")
    del config["service"]["pipelines"]["traces/at-risk"]
    assert sent(config, [(at, send(**made)) for at, made in LONG])["otlp_grpc/tempo"] == []


def test_a_trace_at_risk_in_time_is_kept_whole_and_once(send: Send) -> None:
    trace: list[tuple[float, dict[str, Any]]] = [(0.0, {}), (1.0, HIGH), (2.0, {}), (300.0, {}), (400.0, HIGH)]
    arrivals = [(at, send(**made)) for at, made in trace]
    kept = sent(stack("tempo"), arrivals)["otlp_grpc/tempo"]
    assert sorted(span.span_id for span in kept) == sorted(span.span_id for _, span in arrivals)


@pytest.mark.parametrize(
    ("choice", "exporter", "all_of_them"),
    [
        ("tempo", "otlp_grpc/tempo", False),
        ("langfuse", "otlp_grpc/tempo", False),
        ("langfuse", "otlp_http/langfuse", True),
        ("langfuse-sampled", "otlp_http/langfuse", False),
        ("datadog", "datadog/exporter", False),
        ("clickhouse", "clickhouse", True),
        ("clickhouse", "otlp_grpc/tempo", False),
    ],
)
def test_who_gets_a_sample_and_who_gets_everything(send: Send, choice: str, exporter: str, all_of_them: bool) -> None:
    quiet = [send(number) for number in (1, 2, 3)]
    risky = send(4, **HIGH)
    arrivals = [(float(at), span) for at, span in enumerate([*quiet, risky])]
    got = [span.span_id for span in sent(stack(choice), arrivals)[exporter]]
    assert len(got) == len(set(got)), "each span once"
    assert set(got) == {risky.span_id, *(span.span_id for span in quiet if all_of_them)}


def test_a_share_of_the_others_is_kept(send: Send) -> None:
    one = send()
    many = [(0.0, Span(**(vars(one) | {"trace_id": f"{number * 2**32 // 1000:032x}"}))) for number in range(1000)]
    assert len(sent(stack("tempo"), many, keep_percent=10)["otlp_grpc/tempo"]) == pytest.approx(100, abs=2)


def test_a_condition_outside_the_stand_ins_language_is_an_error(send: Send) -> None:
    with pytest.raises(ValueError, match="IsMatch"):
        holds('IsMatch(span.name, "chat.*")', send())
