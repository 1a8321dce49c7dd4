"""Where spans go, even if an engine rewrites the variables; and how large they get."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from tests.conftest import emit
from tests.harness.faulty import http_receiver

from corevital_otel.counters import Counters
from corevital_otel.otlp.destination import destination
from corevital_otel.otlp.resource import make_resource
from corevital_otel.report import RequestReport, Series
from corevital_otel.spans.attributes import content_attributes, span_attributes
from corevital_otel.spans.emitter import SpanEmitter

Make = Callable[..., RequestReport]
BASE, TRACES, WIRE, TRACES_WIRE = (
    f"OTEL_EXPORTER_OTLP_{name}" for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL")
)
ENGINE = "http://engine:4317"


@pytest.mark.parametrize(
    ("env", "engine", "expected"),
    [
        ({}, None, None),
        ({BASE: "http://h:4318", WIRE: "http/protobuf"}, None, ("http/protobuf", "http://h:4318/v1/traces", None)),
        ({BASE: "http://h:4318/", WIRE: "http/protobuf"}, None, ("http/protobuf", "http://h:4318/v1/traces", None)),
        ({TRACES: "http://h/x", BASE: "http://h", WIRE: "http/protobuf"}, None, ("http/protobuf", "http://h/x", None)),
        ({BASE: "http://h:4317"}, None, ("grpc", "http://h:4317", None)),
        # vLLM's endpoint, written over the variable, is not the user's setting, and has vLLM's protocol
        ({BASE: "http://h:4318", TRACES: ENGINE, WIRE: "http/protobuf"}, ENGINE,
         ("http/protobuf", "http://h:4318/v1/traces", None)),
        ({TRACES: ENGINE, WIRE: "http/protobuf"}, ENGINE, ("grpc", ENGINE, True)),
        ({WIRE: "http/protobuf"}, ENGINE, ("grpc", ENGINE, True)),
        ({}, "engine:4317", ("grpc", "engine:4317", True)),
        ({}, "https://engine:4317", ("grpc", "https://engine:4317", None)),
        ({TRACES_WIRE: "http/protobuf"}, "http://e/v1/traces", ("http/protobuf", "http://e/v1/traces", None)),
        ({TRACES: "http://mine:4317"}, ENGINE, ("grpc", "http://mine:4317", None)),
        ({BASE: "http://h", "OTEL_TRACES_EXPORTER": "none"}, ENGINE, None),
        ({BASE: "http://h", "OTEL_SDK_DISABLED": "true"}, ENGINE, None),
    ],
)  # fmt: skip
def test_spans_go_where_the_user_says_and_else_where_the_engines_go(
    env: dict[str, str], engine: str | None, expected: tuple[str, str, bool | None] | None
) -> None:
    found = destination(env, engine)
    assert (None if found is None else (found.protocol, found.url, found.insecure)) == expected


def test_a_request_of_4096_tokens_in_full_stays_under_the_usual_limits(
    monkeypatch: pytest.MonkeyPatch, report: Make
) -> None:
    values = np.linspace(0, 1, 4096, dtype=np.float32)
    with http_receiver() as received:
        monkeypatch.setenv(BASE, received.endpoint)
        monkeypatch.setenv(WIRE, "http/protobuf")
        emitter = SpanEmitter(Counters(), backends=("langfuse", "openlit", "phoenix"))
        long = report(tokens=4096, series=Series(entropy=values, surprisal=values, margin=values, topk_mass=values))
        for _ in range(40):
            emit(emitter, long)
        emitter.shutdown(20)
        assert len(received.spans) == 40
        assert len(received.bodies) > 1
        assert max(map(len, received.bodies)) < 4_000_000
    span = received.spans[0]
    assert span.ByteSize() < 256_000
    assert len(span.attributes) < 128
    assert len(span.events) < 128
    assert (span.dropped_attributes_count, span.dropped_events_count) == (0, 0)
    assert max(event.ByteSize() for event in span.events) < 16_000
    assert max(attribute.value.ByteSize() for attribute in span.attributes) < 1024


def test_content_is_there_only_where_it_was_handed_on_and_is_cut_where_it_is_long(report: Make) -> None:
    assert content_attributes(report()) == {}
    asked = report()
    object.__setattr__(asked.admitted, "prompt_text", "Say ü \ud800.")
    object.__setattr__(asked.admitted, "stop_sequences", ("END", "ü"))
    object.__setattr__(asked.outcome, "text", "x" * 20_000)
    found = content_attributes(asked)
    assert json.loads(str(found["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": "Say ü ?."}]}
    ]
    assert found["gen_ai.request.stop_sequences"] == ("END", "ü")
    assert not found.keys() & span_attributes(asked).keys(), "the store has the latter"
    (message,) = json.loads(str(found["gen_ai.output.messages"]))
    assert (message.keys(), message["role"]) == ({"role", "parts"}, "assistant")
    assert message["parts"][0]["content"].endswith("x… [3616 characters left out]")


def test_the_resource_names_service_instance_engine_and_device_and_the_user_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "corevital.device.name=mine,deployment.environment.name=eu")
    found = make_resource(
        {"engine.name": "vllm", "engine.version": "0.32.0", "device.name": "H100", "device.memory_bytes": 2**36}
    ).attributes
    assert found["service.name"] == "vllm"
    assert found["corevital.engine.version"] == "0.32.0"
    assert found["corevital.device.memory_bytes"] == 2**36
    assert found["corevital.device.name"] == "mine"
    assert found["deployment.environment.name"] == "eu"
    assert found["service.instance.id"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "checkout")
    assert make_resource().attributes["service.name"] == "checkout"
