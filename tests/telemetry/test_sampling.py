"""Which requests are kept and exported: by rate, by caller, by their own wish, and always where something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from corevital.frames.lifecycle import Admitted
from corevital_otel.report import Health, RequestReport, Risk
from corevital_otel.sampling import Sampler, is_exported, is_kept

Make = Callable[..., RequestReport]


def asked(number: int = 0, **changes: Any) -> Admitted:
    values: dict[str, Any] = {"request_id": f"r{number}", "engine_id": "e", "sequence": 0, "operation": "chat"}
    return Admitted(**{**values, "model": "m", "arrival_ns": number, "prompt_tokens": 1, **changes})


def caller(flags: int) -> Context:
    return set_span_in_context(NonRecordingSpan(SpanContext(1, 2, True, TraceFlags(flags))), Context())


def test_the_rate_is_the_share_kept_and_all_sequences_of_a_request_share_its_draw(report: Make) -> None:
    half = Sampler(0.5)
    kept = [is_kept(report(parent=half.admit(asked(number), Context()))) for number in range(400)]
    assert 140 < sum(kept) < 260
    again = [is_kept(report(parent=half.admit(asked(number, sequence=1), Context()))) for number in range(400)]
    assert again == kept
    other = Sampler(0.5)
    assert [is_kept(report(parent=other.admit(asked(number), Context()))) for number in range(400)] != kept


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
def test_what_is_at_risk_or_faulty_is_kept_whatever_the_rate(report: Make, changes: dict[str, Any]) -> None:
    parent = Sampler(0.0).admit(asked(), Context())
    assert not is_kept(report(parent=parent))
    assert is_kept(report(parent=parent, **changes))
    assert is_exported(report(parent=parent, **changes))


def test_a_callers_flag_goes_before_the_rate_and_forbids_export_alone(report: Make) -> None:
    sampled = report(parent=Sampler(0.0).admit(asked(), caller(1)))
    assert (is_kept(sampled), is_exported(sampled)) == (True, True)
    unsampled = report(parent=Sampler(1.0).admit(asked(), caller(0)))
    assert (is_kept(unsampled), is_exported(unsampled)) == (True, False)
    at_risk = report(parent=Sampler(0.0).admit(asked(), caller(0)), risk=Risk(score=0.9, level="high"))
    assert (is_kept(at_risk), is_exported(at_risk)) == (True, False)


def test_a_requests_own_wish_goes_before_the_rate(report: Make) -> None:
    assert is_kept(report(parent=Sampler(0.0).admit(asked(sample=True), Context())))
