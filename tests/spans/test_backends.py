"""The attributes that each backend gets, and that no other backend gets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from corevital_otel.otlp.destination import destination
from corevital_otel.report import Health, RequestReport, Risk
from corevital_otel.settings import Backend, SettingsError, backends_named, load
from corevital_otel.spans import backends
from corevital_otel.spans.attributes import span_attributes

Make = Callable[..., RequestReport]


def added(wanted: tuple[Backend, ...], report: RequestReport) -> dict[str, Any]:
    return backends.attributes_for(wanted, span_attributes(report))


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("https://cloud.langfuse.com/api/public/otel", ("langfuse",)),
        ("http://10.0.0.7:3000/api/public/otel", ("langfuse",)),
        ("http://phoenix:4317", ("phoenix",)),
        ("https://app.phoenix.arize.com/s/me", ("phoenix",)),
        ("http://127.0.0.1:6006", ("phoenix",)),
        ("http://openlit.monitoring:4318", ("openlit",)),
        ("http://localhost:4317", ()),
        ("otel-collector:4317", ()),
        ("http://[::1", ()),
        ("http://host:many", ()),
    ],
)
def test_a_backend_is_recognised_by_its_endpoint_alone(endpoint: str, expected: tuple[str, ...]) -> None:
    assert backends.recognised(destination({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})) == expected


def test_no_endpoint_no_profile() -> None:
    assert backends.recognised(None) == ()


def test_langfuse_gets_what_it_can_filter_by(report: Make) -> None:
    quiet = added(("langfuse",), (report()))
    assert quiet["langfuse.observation.metadata.risk_level"] == "low"
    assert quiet["langfuse.observation.metadata.risk_score"] == "0.25"
    assert "langfuse.observation.level" not in quiet
    risky = backends.attributes_for(
        ("langfuse",), span_attributes(report(risk=Risk(score=0.9, level="high", factors=("peak",))))
    )
    assert (risky["langfuse.observation.level"], risky["langfuse.observation.status_message"]) == ("WARNING", "peak")
    broken = backends.attributes_for(
        ("langfuse",), span_attributes(report(health=Health(nan_detected=True, truncated=True)))
    )
    assert broken["langfuse.observation.level"] == "ERROR"
    assert broken["langfuse.observation.metadata.flags"] == "nan_detected,truncated"
    alarmed = added(("langfuse",), report(health=Health(alarm_raised=True, alarm_signal="entropy_max")))
    assert alarmed["langfuse.observation.metadata.flags"] == "alarm_raised"
    assert alarmed["langfuse.observation.level"] == "WARNING", "one good answer in twenty raises it"
    shifted = added(("langfuse", "openlit"), report(health=Health(traffic_shifted=True)))
    assert (shifted["langfuse.observation.metadata.flags"], shifted["corevital.at_risk"]) == ("none", "no")
    unknown = added(("langfuse",), (report(risk=Risk(score=None, level="unknown"))))
    assert "langfuse.observation.metadata.risk_score" not in unknown


def test_langfuse_counts_no_token_twice(report: Make) -> None:
    assert not [name for name in added(("langfuse", "phoenix"), (report())) if "gen_ai.usage" in name]


def test_phoenix_and_openlit_get_theirs_together_where_a_collector_feeds_both(report: Make) -> None:
    found = backends.attributes_for(
        ("phoenix", "openlit"), span_attributes(report(health=Health(repetition_loop_detected=True)))
    )
    assert found["openinference.span.kind"] == "LLM"
    assert found["llm.token_count.total"] == found["gen_ai.usage.total_tokens"] == 10
    assert found["corevital.at_risk"] == "yes"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("auto", None), ("none", ()), ("langfuse", ("langfuse",)), ("phoenix, openlit", ("phoenix", "openlit"))],
)
def test_the_setting_names_them(monkeypatch: pytest.MonkeyPatch, value: str, expected: tuple[str, ...] | None) -> None:
    monkeypatch.setenv("COREVITAL_OTEL_PROFILE", value)
    assert backends_named(load().otel_profile) == expected


@pytest.mark.parametrize("value", [",", "jaeger", "auto,phoenix", "none,phoenix"])
def test_an_unknown_profile_is_one_line(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("COREVITAL_OTEL_PROFILE", value)
    with pytest.raises(SettingsError, match=r"^COREVITAL_OTEL_PROFILE='.*' is not allowed: use auto, none, or some of"):
        load()
