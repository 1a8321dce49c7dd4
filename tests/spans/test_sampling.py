"""Which requests are kept and exported: by rate, by caller, by their own argument, and always if something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import sampling as sdk
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, set_span_in_context

from corevital.frames.lifecycle import Admitted
from corevital_otel.otlp.sampler import choose
from corevital_otel.report import Health, RequestReport, Risk
from corevital_otel.sampling import Sampler, context_of, is_kept
from corevital_otel.settings import load
from corevital_otel.spans.http_server import Drawn

Make = Callable[..., RequestReport]

ROOTS = ("always_on", "always_off", "traceidratio")
SAMPLERS = (*ROOTS, *(f"parentbased_{root}" for root in ROOTS))
LOW, HIGH = 0xABC << 64 | 1, 0xABC << 64 | 2**64 - 1
"""Trace ids that a ratio of 0.5 draws, and does not: the lower 64 bits decide."""


def asked(number: int = 0, **changes: Any) -> Admitted:
    values: dict[str, Any] = {"request_id": f"r{number}", "engine_id": "e", "sequence": 0, "operation": "chat"}
    return Admitted(**{**values, "model": "m", "arrival_ns": number, "prompt_tokens": 1, **changes})


def caller(flags: int, trace_id: int = 1) -> Context:
    return set_span_in_context(NonRecordingSpan(SpanContext(trace_id, 2, True, TraceFlags(flags))), Context())


def sampler_of(env: dict[str, str]) -> Sampler:
    choice = choose(load(env), env)
    return Sampler(choice.rate, by_trace_id=choice.by_trace_id, obeys_caller=choice.obeys_caller)


def environment(name: str, rate: str | None = None) -> dict[str, str]:
    env = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    return env if rate is None else {**env, "COREVITAL_SAMPLE_RATE": rate}


def test_the_rate_is_the_share_kept_and_all_sequences_of_a_request_share_its_draw(report: Make) -> None:
    half = Sampler(0.5)
    kept = [is_kept(report(admission=half.admit(asked(number), Context()))) for number in range(400)]
    assert 140 < sum(kept) < 260
    again = [is_kept(report(admission=half.admit(asked(number, sequence=1), Context()))) for number in range(400)]
    assert again == kept
    other = Sampler(0.5)
    assert [is_kept(report(admission=other.admit(asked(number), Context()))) for number in range(400)] != kept


@pytest.mark.parametrize(
    "changes",
    [
        {"risk": Risk(score=0.9, level="high")},
        {"health": Health(nan_detected=True)},
        {"health": Health(inf_detected=True)},
        {"health": Health(repetition_loop_detected=True)},
        {"health": Health(truncated=True), "reason": "length"},
        {"reason": "error"},
    ],
)
def test_requests_at_risk_or_with_a_flag_are_kept_at_any_rate(report: Make, changes: dict[str, Any]) -> None:
    admission = Sampler(0.0).admit(asked(), Context())
    assert not is_kept(report(admission=admission))
    assert is_kept(report(admission=admission, **changes))
    assert admission.exported


def test_a_callers_flag_overrides_the_rate_and_forbids_only_the_export(report: Make) -> None:
    sampled = report(admission=Sampler(0.0).admit(asked(), caller(1)))
    assert (is_kept(sampled), sampled.admission.exported) == (True, True)
    unsampled = report(admission=Sampler(1.0).admit(asked(), caller(0)))
    assert (is_kept(unsampled), unsampled.admission.exported) == (True, False)
    at_risk = report(admission=Sampler(0.0).admit(asked(), caller(0)), risk=Risk(score=0.9, level="high"))
    assert (is_kept(at_risk), at_risk.admission.exported) == (True, False)


def test_a_requests_own_argument_overrides_the_rate(report: Make) -> None:
    assert is_kept(report(admission=Sampler(0.0).admit(asked(sample=True), Context())))


PARENT = f"00-{'1a' * 16}-{'2b' * 8}-01"
OTHER = f"00-{'3c' * 16}-{'4d' * 8}-00"


def test_a_parent_named_in_text_is_a_parent_like_any_other() -> None:
    admission = Sampler(0.0).admit(asked(traceparent=PARENT, tracestate="a=1,b=2"), Context())
    parent = admission.parent
    assert parent is not None
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}", parent.is_remote) == ("1a" * 16, "2b" * 8, True)
    assert parent.trace_state.to_header() == "a=1,b=2"
    assert (admission.drawn, admission.exported) == (True, True), "its sampled flag is obeyed"
    unsampled = Sampler(1.0).admit(asked(traceparent=OTHER), Context())
    assert (unsampled.drawn, unsampled.exported) == (True, False)


def test_a_context_comes_before_a_parent_named_in_text_and_without_a_valid_one_there_is_a_root() -> None:
    admission = Sampler(1.0).admit(asked(traceparent=PARENT), caller(1))
    assert admission.parent is not None
    assert admission.parent.trace_id == 1
    for wrong in ("", "x", PARENT[:-1], "00-" + "0" * 32 + PARENT[35:], PARENT.replace("1a", "\u0661a")):
        assert Sampler(1.0).admit(asked(traceparent=wrong), Context()).parent is None


@pytest.mark.parametrize(
    ("headers", "trace_id", "state"),
    [
        ({"traceparent": PARENT, "tracestate": "a=1"}, "1a" * 16, "a=1"),
        ({"traceparent": "x", "tracestate": "a=1"}, "0" * 32, ""),
        ({"tracestate": "a=1"}, "0" * 32, ""),
        ({"traceparent": PARENT, "tracestate": "a=1\n"}, "1a" * 16, ""),
        ({}, "0" * 32, ""),
    ],
)
def test_a_context_is_that_of_the_headers(headers: dict[str, str], trace_id: str, state: str) -> None:
    found = get_current_span(context_of(headers)).get_span_context()
    assert (f"{found.trace_id:032x}", found.trace_state.to_header()) == (trace_id, state)
    admission = Sampler(1.0).admit(asked(), context_of(headers))
    assert (admission.parent is None) is (trace_id == "0" * 32)


@pytest.mark.parametrize("trace_id", [LOW, HIGH], ids=["low", "high"])
@pytest.mark.parametrize("flags", [None, 0, 1], ids=["no caller", "unsampled", "sampled"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_draws_as_the_sdk_does(
    report: Make, monkeypatch: pytest.MonkeyPatch, name: str, flags: int | None, trace_id: int
) -> None:
    env = environment(name)
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    context = Context() if flags is None else caller(flags, trace_id)
    theirs = sdk._get_from_env_or_default().should_sample(context, trace_id, "x")
    ours = sampler_of(env)
    http = Drawn(ours).should_sample(context, trace_id, "x")
    assert http.decision.is_sampled() is theirs.decision.is_sampled()
    inside = context if flags is not None else caller(int(http.decision.is_sampled()), trace_id)
    if flags is None and not http.decision.is_sampled():
        return  # then the HTTP span is current and recorded: test_http.py
    made = report(admission=ours.admit(asked(), inside))
    assert (is_kept(made) and made.admission.exported) is theirs.decision.is_sampled()


@pytest.mark.parametrize(
    ("name", "kept"),
    [("always_on", True), ("always_off", False), ("parentbased_always_on", True), ("parentbased_always_off", False)],
)
def test_without_a_caller_and_an_http_span_the_root_sampler_draws(report: Make, name: str, kept: bool) -> None:
    assert is_kept(report(admission=sampler_of(environment(name)).admit(asked(), Context()))) is kept


@pytest.mark.parametrize("name", ["traceidratio", "parentbased_traceidratio"])
def test_a_ratio_is_the_share_of_requests_that_have_no_trace_yet(report: Make, name: str) -> None:
    ours = sampler_of(environment(name))
    kept = [is_kept(report(admission=ours.admit(asked(number), Context()))) for number in range(400)]
    assert 140 < sum(kept) < 260
    again = [is_kept(report(admission=ours.admit(asked(number, sequence=1), Context()))) for number in range(400)]
    assert again == kept


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("flags", [None, 0, 1], ids=["no caller", "unsampled", "sampled"])
@pytest.mark.parametrize("rate", ["0", "1"])
def test_the_rate_overrides_each_sampler(name: str, flags: int | None, rate: str) -> None:
    context = Context() if flags is None else caller(flags, HIGH)
    admission = sampler_of(environment(name, rate)).admit(asked(), context)
    assert admission == Sampler(float(rate)).admit(asked(), context)
    assert admission.drawn is (flags == 1 or rate == "1")
    assert admission.exported is (flags != 0)


@pytest.mark.parametrize("flags", [None, 0, 1], ids=["no caller", "unsampled", "sampled"])
@pytest.mark.parametrize("name", ["always_off", "parentbased_always_off"])
def test_requests_at_risk_are_kept_under_each_sampler(report: Make, name: str, flags: int | None) -> None:
    context = Context() if flags is None else caller(flags)
    admission = sampler_of(environment(name)).admit(asked(), context)
    assert is_kept(report(admission=admission, risk=Risk(score=0.9, level="high")))
    assert admission.exported is (name == "always_off" or flags != 0)


def test_a_rate_in_a_file_overrides_the_sampler_too(tmp_path: Path) -> None:
    file = tmp_path / "corevital.toml"
    file.write_text("sample_rate = 1\n")
    choice = choose(load({"COREVITAL_CONFIG": str(file)}), environment("always_off"))
    assert (choice.rate, choice.obeys_caller) == (1.0, True)


@pytest.mark.parametrize("value", ["", "  ", "sometimes", "jaeger_remote"])
def test_no_sampler_and_one_that_is_not_supported_are_the_default(value: str) -> None:
    choice = choose(load({}), environment(value))
    assert (choice.rate, choice.obeys_caller) == (1.0, True)
    assert (choice.unsupported is not None) is bool(value.strip())


def test_a_sampler_is_read_without_regard_to_case_and_a_ratio_is_1_by_default() -> None:
    choice = choose(load({}), {"OTEL_TRACES_SAMPLER": " TraceIdRatio "})
    assert (choice.rate, choice.by_trace_id, choice.obeys_caller) == (1.0, True, False)
