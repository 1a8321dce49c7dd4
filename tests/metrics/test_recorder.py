"""What a report, and our own telemetry, put into which metric."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, TraceFlags

from corevital.frames.lifecycle import CoreFacts
from corevital_otel import __version__
from corevital_otel.counters import Counters
from corevital_otel.losses import Loss
from corevital_otel.metrics.instruments import INSTRUMENTS, Instrument
from corevital_otel.metrics.recorder import Recorder
from corevital_otel.report import Admission, Features, Health, RequestReport, Risk
from corevital_otel.spans.record import SpanIds, SpanRecord, record_of

Make = Callable[..., RequestReport]
IDS = SpanIds("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


def measured(report: RequestReport) -> tuple[RequestReport, SpanRecord]:
    return report, record_of(report, IDS)


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
    Recorder([kept], Counters()).report(*measured(report(tokens=9, reason="length", health=health)))
    requests = {"gen_ai.request.model": "tiny", "finish_reason": "length", "risk_level": "low"}
    assert [entry for entry in kept.of("corevital.requests") if entry[0]] == [(1, requests)]
    assert kept.total("corevital.tokens") == 9
    assert kept.total("corevital.health.flags", flag="nan_detected") == 1
    assert kept.total("corevital.health.flags", flag="truncated") == 1
    assert kept.total("corevital.health.flags") == 2
    assert kept.of("corevital.risk_score") == [(0.25, {"gen_ai.request.model": "tiny", "basis": "prior"})]
    assert kept.of("corevital.entropy") == [(0.5, {"gen_ai.request.model": "tiny"})]


def test_tokens_count_as_they_come_and_once(kept: Kept, report: Make) -> None:
    recorder = Recorder([kept], Counters())
    recorder.refresh(NOTHING, NOTHING, NOTHING, tokens={"tiny": 32})
    assert kept.total("corevital.tokens") == 32
    recorder.report(*measured(dataclasses.replace(report(tokens=40), counted=32)))
    assert kept.total("corevital.tokens") == 40
    recorder.refresh(NOTHING, NOTHING, NOTHING, tokens={"tiny": -32})  # another process will report them
    recorder.refresh(NOTHING, NOTHING, NOTHING, tokens={"tiny": 64})
    assert kept.total("corevital.tokens") == 72


@pytest.mark.parametrize(
    ("flags", "reason", "counted_as"),
    [
        (("nan_detected", "inf_detected", "repetition_loop_detected"), "stop", "nan_detected"),
        (("truncated", "sustained_high_entropy"), "length", "sustained_high_entropy"),
        (("alarm_raised", "repetition_loop_detected"), "abort", "repetition_loop_detected"),
        (("truncated", "traffic_shifted"), "length", None),
        (("nan_detected",), "error", None),  # it is in corevital.requests by its finish reason
        ((), "stop", None),
    ],
)
def test_a_faulty_sequence_is_counted_once(
    flags: tuple[str, ...], reason: str, counted_as: str | None, kept: Kept, report: Make
) -> None:
    health = Health(**dict.fromkeys(flags, True))  # type: ignore[arg-type]
    Recorder([kept], Counters()).report(*measured(report(reason=reason, health=health)))
    found = [(value, labels["flag"]) for value, labels in kept.of("corevital.requests.faulty") if value]
    assert found == ([(1, counted_as)] if counted_as else [])


@pytest.mark.parametrize(
    ("reason", "stop_reason", "counted_as", "saved"),
    [
        ("stop", "corevital:loop", "loop", 92),
        ("stop", "corevital:nan", "nan", 92),
        ("stop", "corevital:alarm", "alarm", 92),
        ("stop", "corevital:other", None, 0),
        ("stop", "loop", None, 0),
        ("stop", None, None, 0),
        ("length", "corevital:loop", None, 0),
    ],
)
def test_a_sequence_that_was_ended_early_is_counted_with_what_it_saved(
    reason: str, stop_reason: str | None, counted_as: str | None, saved: int, kept: Kept, report: Make
) -> None:
    ended = with_facts(report(tokens=8, reason=reason), stop_reason=stop_reason)
    ended = replace(ended, admitted=replace(ended.admitted, max_tokens=100))
    Recorder([kept], Counters()).report(*measured(ended))
    found = [(value, labels["reason"]) for value, labels in kept.of("corevital.requests.stopped") if value]
    assert found == ([(1, counted_as)] if counted_as else [])
    assert kept.total("corevital.tokens.saved") == saved


def test_unobserved_sequences_are_zero_from_the_start_and_then_what_was_counted(kept: Kept) -> None:
    counters = Counters()
    recorder = Recorder([kept], counters)
    recorder.refresh(NOTHING, NOTHING, NOTHING)
    assert kept.of("corevital.sequences.unobserved") == [(0, {})], "an alert needs the first one as an increase"
    counters.add("corevital.sequences.unobserved", 3)
    recorder.refresh(NOTHING, NOTHING, NOTHING)
    assert kept.total("corevital.sequences.unobserved") == 3


def test_latencies_are_the_requests_own(kept: Kept, report: Make) -> None:
    Recorder([kept], Counters()).report(*measured(report(tokens=8)))  # 2 s, the first token after 0.25 s
    ((duration, labels),) = kept.of("gen_ai.server.request.duration")
    assert duration == pytest.approx(2.0)
    assert labels == {
        "gen_ai.request.model": "tiny", "gen_ai.operation.name": "chat", "gen_ai.provider.name": "vllm",
    }  # fmt: skip
    assert kept.of("gen_ai.server.time_to_first_token")[0][0] == pytest.approx(0.25)
    assert kept.of("gen_ai.server.time_per_output_token")[0][0] == pytest.approx(0.25)


def with_facts(report: RequestReport, **facts: Any) -> RequestReport:
    reasoning_tokens = facts.pop("reasoning_tokens", None)
    outcome = replace(report.outcome, core=CoreFacts(**facts), reasoning_tokens=reasoning_tokens)
    return replace(report, outcome=outcome)


PHASES = ("queue", "prefill", "decode")


def test_what_the_engines_core_says_is_measured_by_model_alone(kept: Kept, report: Make) -> None:
    made = with_facts(report(), queue_s=0.5, prefill_s=0.25, decode_s=2.0, preemptions=2, data_parallel_rank=1,
                      stop_reason="7", cached_source="local", accepted_draft_tokens=12,
                      reasoning_tokens=30)  # fmt: skip
    Recorder([kept], Counters()).report(*measured(made))
    of_model = {"gen_ai.request.model": "tiny"}
    for phase, seconds in zip(PHASES, (0.5, 0.25, 2.0), strict=True):
        assert kept.of(f"corevital.request.{phase}") == [(seconds, of_model)]
    for name, count in (("preemptions", 2), ("reasoning.tokens", 30), ("draft.accepted_tokens", 12)):
        assert kept.of(f"corevital.{name}") == [(0, of_model), (count, of_model)]


@pytest.mark.parametrize("facts", [{}, {"queue_s": -1.0, "prefill_s": float("nan"), "decode_s": -0.5}])
def test_what_the_core_does_not_say_is_not_measured(facts: dict[str, float], kept: Kept, report: Make) -> None:
    Recorder([kept], Counters()).report(*measured(with_facts(report(), **facts)))
    assert not [phase for phase in PHASES if kept.of(f"corevital.request.{phase}")]
    assert kept.total("corevital.preemptions") == kept.total("corevital.reasoning.tokens") == 0


@pytest.mark.parametrize(("tokens", "reason"), [(1, "stop"), (3, "abort"), (3, "error")])
def test_decode_time_is_of_answers_that_have_one(tokens: int, reason: str, kept: Kept, report: Make) -> None:
    made = with_facts(report(tokens=tokens, reason=reason), queue_s=0.5, decode_s=2.0)
    Recorder([kept], Counters()).report(*measured(made))
    assert (len(kept.of("corevital.request.queue")), kept.of("corevital.request.decode")) == (1, [])


def test_one_token_has_no_time_per_further_token(kept: Kept, report: Make) -> None:
    Recorder([kept], Counters()).report(*measured(report(tokens=1)))
    assert kept.of("gen_ai.server.time_to_first_token")
    assert not kept.of("gen_ai.server.time_per_output_token")


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_what_was_not_answered_says_nothing_of_the_speed_of_answers(reason: str, kept: Kept, report: Make) -> None:
    Recorder([kept], Counters()).report(*measured(report(reason=reason)))
    assert not kept.of("gen_ai.server.time_to_first_token")
    assert not kept.of("gen_ai.server.time_per_output_token")
    ((_, labels),) = kept.of("gen_ai.server.request.duration")
    assert ("error.type" in labels) == (reason == "error")


def test_what_is_not_known_is_not_recorded(kept: Kept, report: Make) -> None:
    empty = report(tokens=0, features=Features(), risk=Risk(score=None, level="unknown"))
    Recorder([kept], Counters()).report(*measured(empty))
    assert kept.total("corevital.requests", risk_level="unknown") == 1
    for name in ("corevital.risk_score", "corevital.entropy", "corevital.surprisal"):
        assert not kept.of(name)


def test_no_label_grows_without_bound(kept: Kept, report: Make) -> None:
    recorder = Recorder([kept], Counters())
    sizes = []
    for first in (0, 500):
        for number in range(first, first + 500):
            recorder.report(*measured(report(model=f"adapter-{number}", reason=f"reason-{number}")))
        recorder.refresh({f"adapter-{number}": 1 for number in range(first + 500)}, NOTHING, NOTHING)
        labels = [tuple(sorted(labels.items())) for _, _, labels, _ in kept.put_in]
        sizes.append(len(set(labels)))
    assert len({dict(found)["gen_ai.request.model"] for found in labels if "gen_ai.request.model" in dict(found)}) <= 65
    assert sizes[0] == sizes[1]
    assert sizes[1] - len(Loss) < 15 * 65 + 10, "by model; each loss adds one"
    assert kept.total("corevital.requests") == 1000
    assert kept.total("corevital.sequences.running") == 1500


def test_a_served_models_series_are_there_before_its_first_request(kept: Kept) -> None:
    Recorder([kept], Counters(), ["tiny"]).refresh(NOTHING, NOTHING, {"report": 0})
    assert {labels["flag"] for value, labels in kept.of("corevital.health.flags") if value == 0} == {
        "nan_detected", "inf_detected", "repetition_loop_detected", "truncated",
    }  # fmt: skip
    ends, levels = ("stop", "length", "abort", "error", "repetition", "other"), ("low", "medium", "high", "unknown")
    assert kept.total("corevital.requests") == 0
    found = {(labels["finish_reason"], labels["risk_level"]) for _, labels in kept.of("corevital.requests")}
    assert found == set(product(ends, levels))
    assert {labels["flag"] for value, labels in kept.of("corevital.requests.faulty") if value == 0} == {
        "nan_detected", "inf_detected", "repetition_loop_detected",
        "sustained_high_entropy", "distribution_collapsed", "alarm_raised",
    }  # fmt: skip
    assert [labels["reason"] for _, labels in kept.of("corevital.requests.stopped")] == ["nan", "loop", "alarm"]
    assert kept.of("corevital.sequences.running") == [(0, {"gen_ai.request.model": "tiny"})]
    assert kept.of("corevital.telemetry.exported") == [
        (0, {"signal": signal}) for signal in ("traces", "metrics", "logs")
    ]
    kinds = ("beam_search", "scoring", "language_detection", "warm_up")
    assert kept.of("corevital.requests.internal") == [(0, {"kind": kind}) for kind in kinds]
    dropped = {(labels["what"], labels["why"]) for _, labels in kept.of("corevital.telemetry.dropped")}
    assert dropped == {loss.value for loss in Loss}
    assert kept.total("corevital.telemetry.dropped") == 0


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
    recorder.report(*measured(report()))
    recorder.refresh({"tiny": 1}, NOTHING, NOTHING)
    assert kept.total("corevital.requests") == 1
    assert kept.total("corevital.telemetry.faults") > 0
    assert len(logged()) == 1


@pytest.mark.parametrize("flags", [TraceFlags.SAMPLED, TraceFlags.DEFAULT])
def test_an_exemplar_is_of_the_reports_span_and_as_sampled_as_its_caller(flags: int, kept: Kept, report: Make) -> None:
    caller = SpanContext(int(IDS.trace_id, 16), 7, is_remote=True, trace_flags=TraceFlags(flags))
    Recorder([kept], Counters()).report(*measured(report(admission=Admission(parent=caller))))
    (context,) = [context for name, _, _, context in kept.put_in if name == "corevital.risk_score"]
    span = trace.get_current_span(context).get_span_context()
    assert (f"{span.trace_id:032x}", f"{span.span_id:016x}", span.trace_flags) == (IDS.trace_id, IDS.span_id, flags)


def test_a_report_without_a_span_has_no_exemplar(kept: Kept, report: Make) -> None:
    Recorder([kept], Counters()).report(report(), None)
    assert kept.total("corevital.requests") == 1
    assert not any(trace.get_current_span(context).get_span_context().is_valid for *_, context in kept.put_in)


def test_the_versions_are_shown_once_an_engine(kept: Kept, report: Make) -> None:
    made = report()
    newer = replace(made, admitted=replace(made.admitted, engine="vllm", engine_version="0.33.0"))
    recorder = Recorder([kept], Counters())
    for each in (made, made, newer, newer):
        recorder.report(*measured(each))
    versions = [(value, labels["engine_version"]) for value, labels in kept.of("corevital.build_info")]
    assert versions == [(1, made.admitted.engine_version), (1, "0.33.0")]
    assert {labels["version"] for _, labels in kept.of("corevital.build_info")} == {__version__}


def test_names_translate_to_prometheus_by_the_rules() -> None:
    named = {instrument.prometheus for instrument in INSTRUMENTS.values()}
    assert {"corevital_requests", "corevital_risk_score", "corevital_entropy_bits"} <= named
    assert {"gen_ai_server_request_duration_seconds", "corevital_telemetry_cpu_time_seconds"} <= named


def test_each_metric_has_its_row_in_the_documentation() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/understand/metrics.md").read_text()
    for instrument in INSTRUMENTS.values():
        total = "_total" if instrument.kind == "counter" else ""
        assert f"| `{instrument.name}` | `{instrument.prometheus}{total}` | {instrument.kind}" in text
        assert text.count(instrument.prometheus) > 1, "and a question that it answers"
