"""What a report, and our own telemetry, put into which metric."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from corevital_otel.counters import Counters
from corevital_otel.metrics.instruments import INSTRUMENTS, Instrument
from corevital_otel.metrics.recorder import Recorder
from corevital_otel.report import Features, Health, RequestReport, Risk
from corevital_otel.spans import SpanIds

Make = Callable[..., RequestReport]
IDS = SpanIds("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
NOTHING: Mapping[str, int] = {}


class Kept:
    """An output that keeps what it is given."""

    def __init__(self) -> None:
        self.put_in: list[tuple[str, float, dict[str, str], Context]] = []

    def put(self, instrument: Instrument, value: float, labels: Mapping[str, str], context: Context) -> None:
        assert set(instrument.labels) <= set(labels) <= {*instrument.labels, *instrument.conventions}
        self.put_in.append((instrument.name, value, dict(labels), context))

    def close(self, timeout_s: float) -> None: ...

    def of(self, name: str) -> list[tuple[float, dict[str, str]]]:
        return [(value, labels) for found, value, labels, _ in self.put_in if found == name]

    def total(self, name: str, **labels: str) -> float:
        return sum(value for value, found in self.of(name) if labels.items() <= found.items())


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_a_report_is_counted_by_how_it_ended_and_what_was_wrong(kept: Kept, report: Make) -> None:
    health = Health(nan_detected=True, truncated=True)
    Recorder([kept], Counters()).report(report(tokens=9, reason="length", health=health), IDS)
    requests = {"gen_ai.request.model": "tiny", "finish_reason": "length", "risk_level": "low"}
    assert [entry for entry in kept.of("corevital.requests") if entry[0]] == [(1, requests)]
    assert kept.total("corevital.tokens") == 9
    assert kept.total("corevital.health.flags", flag="nan_detected") == 1
    assert kept.total("corevital.health.flags", flag="truncated") == 1
    assert kept.total("corevital.health.flags") == 2
    assert kept.of("corevital.risk_score") == [(0.25, {"gen_ai.request.model": "tiny", "basis": "prior"})]
    assert kept.of("corevital.entropy") == [(0.5, {"gen_ai.request.model": "tiny"})]


def test_latencies_are_the_requests_own(kept: Kept, report: Make) -> None:
    Recorder([kept], Counters()).report(report(tokens=8), IDS)  # 2 s, the first token after 0.25 s
    ((duration, labels),) = kept.of("gen_ai.server.request.duration")
    assert duration == pytest.approx(2.0)
    assert labels == {
        "gen_ai.request.model": "tiny", "gen_ai.operation.name": "chat", "gen_ai.provider.name": "vllm",
    }  # fmt: skip
    assert kept.of("gen_ai.server.time_to_first_token")[0][0] == pytest.approx(0.25)
    assert kept.of("gen_ai.server.time_per_output_token")[0][0] == pytest.approx(0.25)


def test_one_token_has_no_time_per_further_token(kept: Kept, report: Make) -> None:
    Recorder([kept], Counters()).report(report(tokens=1), IDS)
    assert kept.of("gen_ai.server.time_to_first_token")
    assert not kept.of("gen_ai.server.time_per_output_token")


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_what_was_not_answered_says_nothing_of_the_speed_of_answers(reason: str, kept: Kept, report: Make) -> None:
    Recorder([kept], Counters()).report(report(reason=reason), IDS)
    assert not kept.of("gen_ai.server.time_to_first_token")
    assert not kept.of("gen_ai.server.time_per_output_token")
    ((_, labels),) = kept.of("gen_ai.server.request.duration")
    assert ("error.type" in labels) == (reason == "error")


def test_what_is_not_known_is_not_recorded(kept: Kept, report: Make) -> None:
    empty = report(tokens=0, features=Features(), risk=Risk(score=None, level="unknown"))
    Recorder([kept], Counters()).report(empty, IDS)
    assert kept.total("corevital.requests", risk_level="unknown") == 1
    for name in ("corevital.risk_score", "corevital.entropy", "corevital.surprisal"):
        assert not kept.of(name)


def test_no_label_grows_without_bound(kept: Kept, report: Make) -> None:
    recorder = Recorder([kept], Counters())
    for number in range(1000):
        recorder.report(report(model=f"adapter-{number}", reason=f"reason-{number}"), IDS)
    recorder.refresh({f"adapter-{number}": 1 for number in range(1000)}, NOTHING, NOTHING)
    labels = [tuple(sorted(labels.items())) for _, _, labels, _ in kept.put_in]
    assert len({dict(found)["gen_ai.request.model"] for found in labels if "gen_ai.request.model" in dict(found)}) <= 65
    assert len(set(labels)) < 1000
    assert kept.total("corevital.requests") == 1000
    assert kept.total("corevital.sequences.running") == 1000


def test_a_served_models_series_are_there_before_its_first_request(kept: Kept) -> None:
    Recorder([kept], Counters(), ["tiny"]).refresh(NOTHING, NOTHING, {"report": 0})
    assert {labels["flag"] for value, labels in kept.of("corevital.health.flags") if value == 0} == {
        "nan_detected", "inf_detected", "repetition_loop_detected", "truncated",
    }  # fmt: skip
    assert {labels["risk_level"] for _, labels in kept.of("corevital.requests")} == {"low", "medium", "high"}
    assert kept.of("corevital.sequences.running") == [(0, {"gen_ai.request.model": "tiny"})]
    assert kept.of("corevital.telemetry.exported") == [(0, {"signal": "traces"}), (0, {"signal": "metrics"})]
    assert (0, {"what": "record", "why": "queue_full"}) in kept.of("corevital.telemetry.dropped")


def test_what_runs_no_longer_falls_to_zero(kept: Kept) -> None:
    recorder = Recorder([kept], Counters(), ["tiny"])
    recorder.refresh({"tiny": 3}, {"tiny": 1}, NOTHING)
    recorder.refresh(NOTHING, NOTHING, NOTHING)
    assert [value for value, _ in kept.of("corevital.sequences.running")] == [3, 0]
    assert [value for value, _ in kept.of("corevital.sequences.looping")] == [1, 0]


def test_a_loss_is_passed_on_once(kept: Kept) -> None:
    counters = Counters()
    recorder = Recorder([kept], counters)
    counters.add("corevital.telemetry.dropped", 5, what="span", why="queue_full")
    for _ in range(3):
        recorder.refresh(NOTHING, NOTHING, NOTHING)
    counters.add("corevital.telemetry.dropped", 2, what="span", why="queue_full")
    recorder.refresh(NOTHING, NOTHING, NOTHING)
    assert kept.total("corevital.telemetry.dropped", what="span", why="queue_full") == 7


def test_an_output_that_fails_takes_nothing_from_the_other(
    kept: Kept, report: Make, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[logging.LogRecord]]
) -> None:
    class Broken(Kept):
        def put(self, instrument: Instrument, value: float, labels: Mapping[str, str], context: Context) -> None:
            raise RuntimeError("broken")

    monkeypatch.setenv("COREVITAL_RAISE", "0")
    recorder = Recorder([Broken(), kept], Counters())
    recorder.report(report(), IDS)
    recorder.refresh({"tiny": 1}, NOTHING, NOTHING)
    assert kept.total("corevital.requests") == 1
    assert kept.total("corevital.telemetry.faults") > 0
    assert len(logged()) == 1


@pytest.mark.parametrize("flags", [TraceFlags.SAMPLED, TraceFlags.DEFAULT])
def test_an_exemplar_is_of_the_reports_span_and_as_sampled_as_its_caller(flags: int, kept: Kept, report: Make) -> None:
    caller = SpanContext(int(IDS.trace_id, 16), 7, is_remote=True, trace_flags=TraceFlags(flags))
    parent = trace.set_span_in_context(NonRecordingSpan(caller), Context())
    Recorder([kept], Counters()).report(dataclasses.replace(report(), parent=parent), IDS)
    (context,) = [context for name, _, _, context in kept.put_in if name == "corevital.risk_score"]
    span = trace.get_current_span(context).get_span_context()
    assert (f"{span.trace_id:032x}", f"{span.span_id:016x}", span.trace_flags) == (IDS.trace_id, IDS.span_id, flags)


def test_a_report_without_a_span_has_no_exemplar(kept: Kept, report: Make) -> None:
    Recorder([kept], Counters()).report(report(), None)
    assert kept.total("corevital.requests") == 1
    assert not any(trace.get_current_span(context).get_span_context().is_valid for *_, context in kept.put_in)


def test_names_translate_to_prometheus_by_the_rules() -> None:
    named = {instrument.prometheus for instrument in INSTRUMENTS.values()}
    assert {"corevital_requests", "corevital_risk_score", "corevital_entropy_bits"} <= named
    assert {"gen_ai_server_request_duration_seconds", "corevital_telemetry_cpu_time_seconds"} <= named


def test_each_metric_has_its_row_in_the_documentation() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text()
    for instrument in INSTRUMENTS.values():
        total = "_total" if instrument.kind == "counter" else ""
        assert f"| `{instrument.name}` | `{instrument.prometheus}{total}` | {instrument.kind}" in text
        assert text.count(instrument.prometheus) > 1, "and a question that it answers"
