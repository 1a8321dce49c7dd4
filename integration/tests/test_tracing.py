"""One trace from the caller through HTTP to the request, found in a real backend by its risk. No text of a user leaves.

One server for the module: its spans go through rotel, which hands them to a sink that reads every byte and passes them
on to Phoenix. vLLM's own tracing is on and sends to the same collector.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from integration.harness.phoenix import Phoenix, phoenix
from integration.harness.runners import runner_environment
from integration.harness.vllm_server import MODEL_NAME, Vllm, vllm
from tests.conftest import emit
from tests.harness import documented
from tests.harness.collector import Collector, Span, collector

from corevital.frames.lifecycle import Admitted, Finished
from corevital_otel.counters import Counters
from corevital_otel.report import Features, Health, RequestReport, Risk, Series
from corevital_otel.spans.emitter import SpanEmitter

pytestmark = pytest.mark.engine

SERVER, INTERNAL = 2, 1
"""``SpanKind`` on the wire."""
WORDS = ("zanzibar", "quokka", "ottoline")
LOOP = "Say snow hop forever."


@dataclass
class Served:
    server: Vllm
    collector: Collector
    phoenix: Phoenix
    database: Path
    sent: dict[str, str] = field(default_factory=dict)  # request id -> trace id

    def ask(self, prompt: str, path: str = "/v1/chat/completions", **more: Any) -> tuple[httpx.Response, str, str]:
        """Ask as a caller with its own trace; returns its trace and span id."""
        headers, body = more.pop("headers", {}), more
        trace, caller = secrets.token_hex(16), secrets.token_hex(8)
        flags = headers.pop("flags", "01")
        if "chat" in path:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["input" if "responses" in path else "prompt"] = prompt
        headers = {"traceparent": f"00-{trace}-{caller}-{flags}", **headers}
        reply = httpx.post(self.server.url + path, json={"model": MODEL_NAME, **body}, headers=headers, timeout=120)
        return reply, trace, caller

    def trace(self, trace_id: str, count: int) -> list[Span]:
        """The spans of a trace, read a moment after all should have arrived."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if len(self._of(trace_id)) >= count:
                break
            time.sleep(0.1)
        time.sleep(1.5)
        return self._of(trace_id)

    def _of(self, trace_id: str) -> list[Span]:
        sink = self.collector.sink
        return [span for span in (*sink.spans, *sink.others) if span.trace_id == trace_id]

    def row(self, trace_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with sqlite3.connect(self.database) as connection:
                connection.row_factory = sqlite3.Row
                if found := connection.execute("SELECT * FROM reports WHERE trace_id = ?", (trace_id,)).fetchone():
                    return dict(found)
            time.sleep(0.1)
        raise AssertionError("no row")


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    with phoenix(tmp_path_factory.mktemp("backend")) as running:
        yield running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, backend: Phoenix) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tracing")
    with collector(folder, f"{backend.http}/v1/traces") as rotel:
        env = {
            **runner_environment("v1"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": rotel.http,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",  # vLLM's goes by gRPC to a variable that it overwrites
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_SERVICE_NAME": "checkout-llm",
            "COREVITAL_OTEL_PROFILE": "langfuse,phoenix",
            "COREVITAL_PROMPT_HASH_KEY": "between us",
            "COREVITAL_RISK_THRESHOLD": "0.15",  # so that the demo model's loops are high
        }
        arguments = ("--dtype", "float32", "--otlp-traces-endpoint", rotel.grpc, "--enable-request-id-headers")
        with vllm(folder, *arguments, env=env) as server:
            yield Served(server, rotel, backend, folder / "runs/corevital.db")
            # before the stop: both the engine and the API server get the signal, and vLLM may find its engine dead
            assert "Traceback" not in server.text()


@pytest.mark.parametrize(
    ("path", "operation"),
    [("/v1/chat/completions", "chat"), ("/v1/completions", "text_completion"), ("/v1/responses", "chat")],
)
def test_one_trace_leads_from_the_caller_over_http_to_the_request_and_vllms_own_span(
    served: Served, path: str, operation: str
) -> None:
    headers = {"tracestate": "vendor=7", "X-Request-Id": "mine-1"}
    reply, trace, caller = served.ask("What is 14 + 21?", path, headers=headers, temperature=0)
    assert reply.status_code == 200, reply.text
    assert reply.headers["X-Request-Id"] == "mine-1"
    spans = served.trace(trace, 3)
    by_name = {span.name: span for span in spans}
    assert by_name.keys() == {f"POST {path}", f"{operation} {MODEL_NAME}", "llm_request"}
    assert len(spans) == 3
    http, own, theirs = by_name[f"POST {path}"], by_name[f"{operation} {MODEL_NAME}"], by_name["llm_request"]
    assert (http.kind, http.parent_id) == (SERVER, caller)
    assert (own.kind, own.parent_id) == (INTERNAL, http.span_id)
    assert theirs.parent_id == http.span_id
    assert http.trace_state == own.trace_state == "vendor=7"
    assert http.start_ns <= own.start_ns
    assert own.end_ns <= http.end_ns + 50e6
    assert http.attributes["http.response.status_code"] == 200
    assert "mine-1" in str(own.attributes["gen_ai.response.id"]) or operation == "chat"
    assert own.attributes["gen_ai.usage.output_tokens"] > 0
    assert not [name for name in theirs.attributes if name.startswith("gen_ai.usage.")], "each token counts once"
    assert not [name for name in http.attributes if name.startswith("gen_ai.")]
    documented.check(own.attributes, "The request", "In the engine", "Risk and health", "Statistics of the tokens",
                     "How it was measured", "For one backend")  # fmt: skip
    documented.check(http.attributes, "The HTTP request")
    documented.check(own.resource, "The resource")
    assert own.resource["service.name"] == "checkout-llm"
    assert own.resource["corevital.engine.version"] == own.attributes["corevital.engine.version"]
    assert own.resource["corevital.device.type"] == "cpu"
    assert own.resource["corevital.engine.max_model_len"] == 2048
    assert own.resource["service.instance.id"]


def test_the_start_line_shows_what_is_measured_and_where_it_goes(served: Served) -> None:
    (line,) = [line for line in served.server.text().splitlines() if "corevital INFO" in line]
    assert f"measures {MODEL_NAME}: vllm " in line
    assert "runner v1, kernel numba on cpu, capture on_risk, sample rate 1, store /" in line
    assert line.endswith(
        f"spans to {served.collector.http} by http/protobuf, risk prior, then baseline, no profile, no alarm"
    )


def test_probes_have_no_span(served: Served) -> None:
    before = len(served.collector.sink.others)
    for path in ("/health", "/metrics", "/ping"):
        httpx.get(served.server.url + path, timeout=10)
    time.sleep(1.5)
    paths = [span.attributes.get("url.path") for span in served.collector.sink.others[before:]]
    assert not {"/health", "/metrics", "/ping"} & set(paths)


def test_a_caller_that_does_not_sample_gets_no_span_and_is_in_the_store(served: Served) -> None:
    reply, trace, _ = served.ask("What is 2 + 2?", headers={"flags": "00"})
    assert reply.status_code == 200
    assert served.row(trace)["export"] is None
    assert [span.name for span in served.trace(trace, 0) if span.name != "llm_request"] == []


def test_equal_prompts_have_equal_hashes_and_different_ones_differ(served: Served) -> None:
    asked = [served.ask(prompt, max_tokens=2)[1] for prompt in ("Count to 3.", "Count to 3.", "Count to 4.")]
    hashes = [json.loads(served.row(trace)["summary"])["corevital.prompt.hash"] for trace in asked]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == 32


def test_no_prompt_answer_or_user_name_leaves(served: Served) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        more = {"stop": [WORDS[1]]} if "responses" not in path else {}
        reply, trace, _ = served.ask(
            f"Tell me of {WORDS[0]} and {WORDS[1]}.", path, user=WORDS[2],
            headers={"User-Agent": WORDS[1], "Cookie": f"a={WORDS[0]}", "X-User-Id": WORDS[2]}, **more,
        )  # fmt: skip
        assert reply.status_code == 200, reply.text
        served.trace(trace, 3)
    bad, _, _ = served.ask(WORDS[0], temperature=-7)
    assert bad.status_code == 400
    answer, trace, _ = served.ask("What is the capital of Mardony?", temperature=0)
    spans = served.trace(trace, 3)
    said = answer.json()["choices"][0]["message"]["content"]
    assert len(said) > 3
    everything = served.collector.sink.received
    assert len(everything) > 10_000
    assert b"gen_ai.response.id" in everything, "it would have been found"
    for word in (*WORDS, "capital", said):
        assert word.encode() not in everything, word
    assert not [name for span in spans for name in span.attributes if "messages" in name or "token_ids" in name]
    stored = served.database.read_bytes() + served.database.with_name("corevital.db-wal").read_bytes()
    for word in WORDS:
        assert word.encode() not in stored


def test_phoenix_finds_the_request_at_risk_by_its_score_and_the_trace_is_whole(served: Served) -> None:
    quiet = served.ask("What is 14 + 21?", temperature=0)[1]
    risky = [served.ask(LOOP, temperature=0.9, seed=seed, max_tokens=160)[1] for seed in range(8)]
    rows = [served.row(trace) for trace in (quiet, *risky)]
    wanted = {row["span_id"] for row in rows if row["risk_score"] > 0.15}
    others = {row["span_id"] for row in rows} - wanted
    assert wanted
    assert others
    served.phoenix.wait_for(lambda spans: {row["span_id"] for row in rows} <= {s["context"]["span_id"] for s in spans})
    found = served.phoenix.found("attributes['corevital']['risk_score'] > 0.15")
    assert wanted <= found
    assert not others & found
    at_risk = served.phoenix.found("attributes['corevital']['risk']['level'] == 'high'")
    assert wanted <= at_risk
    assert not others & at_risk
    looping = {row["span_id"] for row in rows if "repetition_loop_detected" in row["flags"]}
    found = served.phoenix.found("attributes['corevital']['health']['repetition_loop_detected'] == True")
    assert looping
    assert found & {row["span_id"] for row in rows} == looping
    row = next(row for row in rows if row["span_id"] in wanted)
    trace = {
        span["context"]["span_id"]: span
        for span in served.phoenix.wait_for(
            lambda spans: sum(span["context"]["trace_id"] == row["trace_id"] for span in spans) == 3
        )
        if span["context"]["trace_id"] == row["trace_id"]
    }
    own = trace[row["span_id"]]
    assert own["span_kind"] == "LLM"
    assert trace[own["parent_id"]]["name"] == "POST /v1/chat/completions"


@pytest.mark.parametrize("wire", ["grpc", "http/protobuf"])
def test_phoenix_accepts_both_protocols_and_a_long_series(
    backend: Phoenix, monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.grpc if wire == "grpc" else backend.http)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", wire)
    counters = Counters()
    emitter = SpanEmitter(counters, backends=("phoenix",))
    span_id = emit(emitter, long_report()).span_id
    emitter.shutdown(20)
    assert counters.get("corevital.telemetry.exported") == 1
    spans = backend.wait_for(lambda spans: span_id in {span["context"]["span_id"] for span in spans})
    (span,) = [span for span in spans if span["context"]["span_id"] == span_id]
    series = [event["attributes"] for event in span["events"] if event["name"] == "corevital.series"]
    assert [event["offset"] for event in series] == list(range(0, 4096, 256))
    assert sum(len(event["entropy"]) for event in series) == 4096


def long_report() -> RequestReport:
    """A request of 4,096 tokens, captured in full."""
    values = np.linspace(0, 1, 4096, dtype=np.float32)
    now = time.time_ns()
    return RequestReport(
        admitted=Admitted(request_id="long", engine_id="long", sequence=0, operation="chat", model="m",
                          arrival_ns=now - 10**9, prompt_tokens=1),
        outcome=Finished(reason="stop", token_ids=(0,) * 4096, end_ns=now),
        features=Features(tokens=4096),
        health=Health(),
        risk=Risk(score=0.1, level="low"),
        series=Series(entropy=values, surprisal=values, margin=values, topk_mass=values),
        capture="full",
    )  # fmt: skip
