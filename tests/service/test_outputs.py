"""What is put out of a report goes together: its span, and the HTTP span around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import SpanContext, TraceFlags

from corevital_otel.counters import Counters
from corevital_otel.otlp.destination import Destination
from corevital_otel.report import Admission, RequestReport
from corevital_otel.sampling import Sampler
from corevital_otel.service.outputs import Outputs
from corevital_otel.settings import Settings


class Sent:
    """A stand-in for the queue of spans."""

    def put(self, span: Any) -> None:
        pass

    def room_for(self, size: int) -> bool:
        return True

    def close(self, timeout_s: float) -> None:
        pass


@pytest.mark.parametrize(("flags", "kept"), [(0, ["0000000000000002"]), (1, [])])
def test_a_request_that_asked_to_be_kept_keeps_a_server_span_that_was_not_drawn(
    monkeypatch: pytest.MonkeyPatch, report: Callable[..., RequestReport], flags: int, kept: list[str]
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    outputs = Outputs(Settings(db=None), Counters(), Sampler(0.0))
    outputs._spans._processor = Sent()  # type: ignore[assignment]
    found: list[str | None] = []
    monkeypatch.setattr(outputs._http, "keep", found.append)
    parent = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(flags))
    outputs.put(report(admission=Admission(parent, drawn=True, exported=True)))
    outputs.close()
    assert found == kept


@pytest.mark.parametrize(
    ("profile", "keys", "scored"),
    [("langfuse", True, 1), ("langfuse", False, 0), ("none", True, 0), ("phoenix", True, 0)],
)
def test_scores_go_only_where_spans_go_to_langfuse_and_there_are_keys(
    monkeypatch: pytest.MonkeyPatch, report: Callable[..., RequestReport], profile: str, keys: bool, scored: int
) -> None:
    for name, value in (("PUBLIC_KEY", "pk"), ("SECRET_KEY", "sk"), ("HOST", "http://127.0.0.1:9")):
        monkeypatch.setenv(f"LANGFUSE_{name}", value if keys else "")
    where = Destination("http://127.0.0.1:9", "http/protobuf", "http://127.0.0.1:9/v1/traces")
    counters = Counters()
    outputs = Outputs(Settings(db=None, otel_profile=profile), counters, Sampler(1.0), where=where)
    outputs._spans._processor = Sent()  # type: ignore[assignment]
    assert (outputs._scores is not None) == bool(scored)
    if outputs._scores is not None:
        found: list[str] = []
        monkeypatch.setattr(outputs._scores, "send", lambda record: found.append(record.request_id))
        outputs.put(report())
        assert found == ["chatcmpl-1"]
    outputs.close()
