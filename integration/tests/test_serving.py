"""The main job: a real server under mixed traffic, each sequence one span, equal at a collector and in the store."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.harness import openai_clients, verdicts
from integration.harness.runners import RUNNERS, runner_environment
from integration.harness.vllm_server import MODEL_NAME, Vllm, hubs, vllm
from prometheus_client.parser import text_string_to_metric_families
from tests.harness.collector import Collector, Span, collector

from corevital_otel.cli.demo.tasks import make_tasks
from corevital_otel.metrics.instruments import INSTRUMENTS
from corevital_otel.store.reader import StoredReport, StoreReader

pytestmark = pytest.mark.engine

PROMPTS = [
    task.prompt for kind in ("add", "sum", "sort", "fact", "count", "story", "loop") for task in make_tasks(kind, 30, 5)
]
NO_REUSE = httpx.Limits(max_keepalive_connections=0)
"""A connection that the server closes while the client picks it up again fails a request, with or without us."""
INTERNAL = 1
"""``SpanKind`` on the wire."""


@dataclass
class Answer:
    """The client's view of one request: its id, and each sequence's tokens and finish reason."""

    request_id: str
    operation: str
    output_tokens: int  # of all its sequences
    sequences: int = 1
    prompt_tokens: int | None = None
    finish_reasons: list[str] = field(default_factory=list)
    trace_id: str | None = None
    parent_id: str | None = None


@dataclass
class Served:
    """A server with everything attached to it."""

    server: Vllm
    collector: Collector
    database: Path
    runner: str
    place: str

    def rows(self) -> list[StoredReport]:
        return StoreReader(self.database).list_reports(limit=100_000)


PLACES = [*((runner, "thread") for runner in RUNNERS), (RUNNERS[0], "process")]
"""Model runners, each with where the telemetry half runs."""


@pytest.fixture(scope="module", params=PLACES, ids="-".join)
def served(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    runner, place = request.param
    with collector(folder) as rotel:
        env = {
            "COREVITAL_CAPTURE": "full",
            "OTEL_EXPORTER_OTLP_ENDPOINT": rotel.grpc,
            "OTEL_SERVICE_NAME": "checkout-llm",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "COREVITAL_PROCESS": place,
            **runner_environment(runner),
        }
        with vllm(folder, "--dtype", "float32", env=env) as server:
            yield Served(server, rotel, folder / "runs/corevital.db", runner, place)
        assert server.wait_gone(1) == {}
        assert hubs(folder) == []


class Client:
    """Sends every kind of request."""

    def __init__(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        self.http = http
        self.rng = rng

    async def chat(self, prompt: str, **body: Any) -> Answer:
        reply = await self.http.post(
            "/v1/chat/completions",
            json={"model": MODEL_NAME, "messages": [{"role": "user", "content": prompt}], **body},
        )
        return self._answer(reply, "chat")

    async def completion(self, prompt: str | list[str], **body: Any) -> Answer:
        reply = await self.http.post("/v1/completions", json={"model": MODEL_NAME, "prompt": prompt, **body})
        return self._answer(reply, "text_completion")

    async def responses(self, prompt: str, **body: Any) -> Answer:
        reply = await self.http.post("/v1/responses", json={"model": MODEL_NAME, "input": prompt, **body})
        data = reply.raise_for_status().json()
        return Answer(data["id"], "chat", data["usage"]["output_tokens"], prompt_tokens=data["usage"]["input_tokens"])

    async def stream(self, prompt: str, headers: dict[str, str] | None = None, **body: Any) -> Answer:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        message = {"model": MODEL_NAME, "messages": [{"role": "user", "content": prompt}], **body}
        answer = Answer("", "chat", 0)
        async with self.http.stream("POST", "/v1/chat/completions", json=message, headers=headers) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    answer.request_id = chunk["id"]
                    if chunk.get("usage"):
                        answer.output_tokens = chunk["usage"]["completion_tokens"]
        return answer

    async def hang_up(self, prompt: str) -> Answer:
        """Disconnect after a few tokens: an abort."""
        answer = Answer("", "chat", -1, finish_reasons=["abort"])
        message = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "max_tokens": 1900,
        }
        async with self.http.stream("POST", "/v1/chat/completions", json={**message, "ignore_eos": True}) as reply:
            seen = 0
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    answer.request_id = json.loads(line.removeprefix("data: "))["id"]
                    seen += 1
                if seen > 3:
                    break
        return answer

    @staticmethod
    def _answer(reply: httpx.Response, operation: str) -> Answer:
        data = reply.raise_for_status().json()
        reasons = [choice["finish_reason"] for choice in data["choices"]]
        usage = data["usage"]
        return Answer(data["id"], operation, usage["completion_tokens"], len(reasons), usage["prompt_tokens"], reasons)


async def mixed_traffic(url: str, count: int = 200) -> tuple[list[Answer], int]:
    """``count`` requests, at most 16 at a time; returns what was answered, and how many were refused with HTTP 400."""
    rng = random.Random(11)
    refused = 0
    gate = asyncio.Semaphore(16)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=NO_REUSE) as http:
        client = Client(http, rng)

        async def one(number: int) -> Answer | None:  # noqa: PLR0911 - one return a shape of request
            nonlocal refused
            prompt = rng.choice(PROMPTS)
            async with gate:
                match number % 12:
                    case 0:
                        return await client.chat(prompt, temperature=0, max_tokens=60)
                    case 1:
                        return await client.chat(prompt, temperature=0.9, max_tokens=50, n=2)
                    case 2:
                        return await client.stream(prompt, temperature=0.7, max_tokens=80)
                    case 3:
                        return await client.completion(prompt + "\n", max_tokens=1, temperature=1)
                    case 4:
                        return await client.completion(
                            [prompt + "\n", "What is 1 + 1?\n"], max_tokens=20, temperature=0
                        )
                    case 5:
                        return await client.responses(prompt, max_output_tokens=40)
                    case 6:
                        return await client.hang_up(prompt)
                    case 7:
                        reply = await http.post(
                            "/v1/chat/completions",
                            json={
                                "model": MODEL_NAME,
                                "messages": [{"role": "user", "content": prompt}],
                                "vllm_xargs": {"corevital_capture": "sometimes"},
                            },
                        )
                        assert reply.status_code == 400, reply.text
                        assert "corevital_capture='sometimes' is not allowed" in reply.text
                        refused += 1
                        return None
                    case 8:
                        return await client.chat(prompt, stop=["1", "e"], max_tokens=60, temperature=0.5)
                    case 9:
                        return await client.completion(
                            prompt + "\n", max_tokens=40, temperature=0.8, repetition_penalty=1.4
                        )
                    case 10:
                        return await client.chat(
                            prompt, max_tokens=30, temperature=0, structured_outputs={"regex": "[0-9]{1,5}"}
                        )
                    case _:
                        trace, parent = f"{rng.getrandbits(128):032x}", f"{rng.getrandbits(64):016x}"
                        headers = {"traceparent": f"00-{trace}-{parent}-01"}
                        answer = await client.stream(prompt, headers=headers, temperature=0, max_tokens=30)
                        answer.trace_id, answer.parent_id = trace, parent
                        return answer

        answers = await asyncio.gather(*(one(number) for number in range(count)))
    return [answer for answer in answers if answer is not None], refused


@dataclass
class Outcome:
    """The traffic and its outcomes."""

    answers: list[Answer]
    refused: int
    spans: list[Span]
    rows: list[StoredReport]


@pytest.fixture(scope="module")
def outcome(served: Served) -> Outcome:
    answers, refused = asyncio.run(mixed_traffic(served.server.url))
    spans = served.collector.sink.wait_for(sum(answer.sequences for answer in answers))
    return Outcome(answers, refused, spans, served.rows())


def test_each_sequence_is_exactly_one_span_and_one_row(outcome: Outcome) -> None:
    expected = Counter({answer.request_id: answer.sequences for answer in outcome.answers})
    assert len(outcome.answers) + outcome.refused == 200
    assert outcome.refused > 10
    assert Counter(span.attributes["gen_ai.response.id"] for span in outcome.spans) == expected
    assert Counter(row.request_id for row in outcome.rows) == expected
    assert len({span.span_id for span in outcome.spans}) == len(outcome.spans)


def test_the_collector_and_the_store_agree(outcome: Outcome) -> None:
    rows = {row.span_id: row for row in outcome.rows}
    for span in outcome.spans:
        row = rows[span.span_id]
        assert span.attributes == row.summary
        assert span.trace_id == row.trace_id
        assert span.attributes.get("corevital.risk_score") == row.risk_score


def test_spans_are_named_timed_and_attributed_by_the_contract(served: Served, outcome: Outcome) -> None:
    operations = {answer.request_id: answer.operation for answer in outcome.answers}
    for span in outcome.spans:
        found = span.attributes
        assert span.name == f"{operations[found['gen_ai.response.id']]} {MODEL_NAME}"
        assert span.kind == INTERNAL
        assert span.resource["service.name"] == "checkout-llm"
        assert 0 < span.end_ns - span.start_ns < 120e9
        assert found["gen_ai.provider.name"] == "vllm"
        assert found["corevital.engine"] == "vllm"
        assert found["corevital.runner"] == served.runner
        assert found["corevital.risk.basis"] == "prior"
        if found["gen_ai.usage.output_tokens"]:
            assert found["corevital.risk.level"] in ("low", "medium", "high")
            for name in ("entropy.mean", "entropy.max", "surprisal.sum", "perplexity", "margin.min", "topk_mass.mean"):
                assert f"corevital.{name}" in found
            assert found["gen_ai.response.time_to_first_chunk"] > 0
            phases = [found[f"corevital.{phase}_s"] for phase in ("queue", "prefill", "decode")]
            assert min(phases) >= 0
            if "corevital.stop_reason" not in found and found["gen_ai.response.finish_reasons"] != ["abort"]:
                assert sum(phases) <= (span.end_ns - span.start_ns) / 1e9  # what the frontend ends, the core ends later
            assert found["corevital.preemptions"] >= 0
            assert ("corevital.cached_tokens.source" in found) == (found["gen_ai.usage.cache_read.input_tokens"] > 0)
    stopped_by = {span.attributes.get("corevital.stop_reason") for span in outcome.spans}
    assert stopped_by == {None, "stop_string"}, "a stop string is the client's text"


def test_tokens_observed_are_the_tokens_answered(outcome: Outcome) -> None:
    by_request = Counter[str]()
    for row in outcome.rows:
        assert row.summary["corevital.tokens.observed"] == row.output_tokens
        assert "corevital.incomplete" not in row.summary
        by_request[row.request_id] += row.output_tokens
    for answer in outcome.answers:
        if answer.output_tokens >= 0:
            assert by_request[answer.request_id] == answer.output_tokens, answer


def test_finish_reasons_and_truncation_are_those_the_client_saw(outcome: Outcome) -> None:
    found: dict[str, list[str]] = {}
    for row in sorted(outcome.rows, key=lambda row: row.sequence):
        found.setdefault(row.request_id, []).append(row.finish_reason)
        assert ("truncated" in row.flags) == (row.finish_reason == "length")
    for answer in outcome.answers:
        if answer.finish_reasons and answer.output_tokens >= 0:
            assert found[answer.request_id] == answer.finish_reasons, answer
    hung_up = [found[answer.request_id] for answer in outcome.answers if answer.output_tokens < 0]
    assert all(reasons in (["abort"], ["length"]) for reasons in hung_up), "a hang-up may come too late"


def test_the_engines_page_has_the_metrics_of_every_sequence(served: Served, outcome: Outcome) -> None:
    """The hub process sends its metrics once a second."""
    deadline = time.monotonic() + 10
    while True:
        page = httpx.get(f"{served.server.url}/metrics", timeout=30).raise_for_status().text
        families = {family.name: family for family in text_string_to_metric_families(page)}
        requests = families["corevital_requests"].samples if "corevital_requests" in families else ()
        counted = sum(sample.value for sample in requests if sample.name == "corevital_requests_total")
        if counted >= len(outcome.rows) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert counted >= len(outcome.rows)
    assert {each.prometheus for each in INSTRUMENTS.values()} <= families.keys()
    assert "vllm:num_requests_running" in families
    assert {one.value for one in families["corevital_telemetry_faults"].samples if one.name.endswith("_total")} == {0}


def test_a_client_that_hangs_up_leaves_one_aborted_span(served: Served) -> None:
    async def send() -> list[Answer]:
        async with httpx.AsyncClient(base_url=served.server.url, timeout=60, limits=NO_REUSE) as http:
            client = Client(http, random.Random())
            return [await client.hang_up("Tell me a story about a baker.") for _ in range(5)]

    before = len(served.collector.sink.spans)
    answers = asyncio.run(send())
    spans = {
        span.attributes["gen_ai.response.id"]: span for span in served.collector.sink.wait_for(before + 5)[before:]
    }
    assert spans.keys() == {answer.request_id for answer in answers}
    reasons = [span.attributes["gen_ai.response.finish_reasons"] for span in spans.values()]
    assert ["abort"] in reasons
    assert all(found in (["abort"], ["length"]) for found in reasons), "on a busy machine a hang-up may come too late"
    for span in spans.values():
        assert span.attributes["corevital.tokens.observed"] == span.attributes["gen_ai.usage.output_tokens"] > 0
        assert "corevital.incomplete" not in span.attributes


def test_a_callers_traceparent_is_trace_and_parent_of_the_span_through_the_server_span(
    served: Served, outcome: Outcome
) -> None:
    spans = {span.attributes["gen_ai.response.id"]: span for span in outcome.spans}
    http = {span.span_id: span for span in served.collector.sink.others}
    traced = [answer for answer in outcome.answers if answer.trace_id]
    assert len(traced) > 10
    for answer in traced:
        span = spans[answer.request_id]
        assert span.trace_id == answer.trace_id
        assert http[span.parent_id].parent_id == answer.parent_id
    untraced = [spans[answer.request_id] for answer in outcome.answers if not answer.trace_id]
    assert all(http[span.parent_id].parent_id == "" for span in untraced)
    siblings = [span for span in outcome.spans if span.attributes["corevital.sequence"] == 1]
    assert siblings
    assert all(span.trace_id == spans[span.attributes["gen_ai.response.id"]].trace_id for span in siblings)


def test_a_request_of_one_token_has_one_surprisal(outcome: Outcome) -> None:
    single = [row for row in outcome.rows if row.output_tokens == 1]
    assert len(single) > 10
    for row in single:
        assert row.summary["corevital.surprisal.sum"] == row.summary["corevital.surprisal.max"]


def test_the_series_travels_in_events_of_at_most_256_tokens(served: Served, outcome: Outcome) -> None:
    reader = StoreReader(served.database)
    for span in outcome.spans:
        tokens = span.attributes["gen_ai.usage.output_tokens"]
        assert [event["offset"] for event in span.series] == list(range(0, tokens, 256))
        series = [value for event in span.series for value in event["entropy"]]
        assert len(series) == tokens
        if tokens:
            assert sum(series) == pytest.approx(span.attributes["corevital.entropy.sum"], rel=1e-3, abs=1e-3)
    row = max(outcome.rows, key=lambda row: row.output_tokens)
    (whole,) = [found for found in reader.get(row.request_id) if found.span_id == row.span_id]
    assert whole.series is not None
    assert len(whole.series) == row.output_tokens


def test_a_requests_own_arguments_apply(served: Served) -> None:
    async def send() -> list[Answer]:
        async with httpx.AsyncClient(base_url=served.server.url, timeout=60) as http:
            client = Client(http, random.Random())
            prompt = "What is 12 + 30?"
            return [
                await client.chat(prompt, max_tokens=5, vllm_xargs={"corevital_capture": "summary"}),
                await client.chat(prompt, max_tokens=5, vllm_xargs={"corevital_sample": 0}),
                await client.chat(prompt, max_tokens=5, vllm_xargs={"corevital_tags": "canary, eu", "other": "x"}),
            ]

    before = len(served.collector.sink.spans)
    summary, unmeasured, tagged = asyncio.run(send())
    spans = {
        span.attributes["gen_ai.response.id"]: span for span in served.collector.sink.wait_for(before + 2)[before:]
    }
    assert spans.keys() == {summary.request_id, tagged.request_id}
    assert unmeasured.request_id not in spans
    assert spans[summary.request_id].series == []
    assert spans[summary.request_id].attributes["corevital.capture"] == "summary"
    assert spans[tagged.request_id].attributes["corevital.tags"] == ["canary", "eu"]


def test_the_log_has_no_error(served: Served, outcome: Outcome) -> None:
    log = served.server.text()
    assert "Traceback" not in log
    assert "corevital WARNING" not in log


def test_the_verdict_reaches_its_caller(served: Served, tmp_path: Path) -> None:
    if served.place == "process":  # it has the reports, and does not answer
        verdicts.check_absent(served.server)
        return
    verdicts.check(openai_clients.python(served.server.url, MODEL_NAME))
    verdicts.check(openai_clients.node(served.server.url, MODEL_NAME, tmp_path))
    openai_clients.run_examples(served.server.url, MODEL_NAME, tmp_path)
    assert verdicts.median_wait_s(served.server.url) < 0.15, "its statistics are not gathered"


def test_a_report_is_on_the_servers_own_port(served: Served) -> None:
    verdicts.check_route(served.server.url, has_it=served.place == "thread")


def test_a_hub_process_that_is_killed_or_stands_still_costs_no_request(served: Served, outcome: Outcome) -> None:
    """There is one only where it was asked for; a new one is sent what the old one had not reported."""
    prompts = ["What is 12 + 30?"] * 4

    async def send() -> list[Answer]:
        async with httpx.AsyncClient(base_url=served.server.url, timeout=60, limits=NO_REUSE) as http:
            client = Client(http, random.Random())
            return [await client.chat(prompt, max_tokens=5) for prompt in prompts]

    folder = served.database.parents[1]
    answers = []
    for number in (signal.SIGKILL, signal.SIGSTOP):
        running = hubs(folder)
        assert len(running) == (served.place == "process")
        for hub in running:
            os.kill(hub, number)
        answers += asyncio.run(send())
        for hub in running if number == signal.SIGSTOP else ():
            os.kill(hub, signal.SIGCONT)
        deadline = time.monotonic() + 60
        while len(hubs(folder)) < len(running) and time.monotonic() < deadline:
            time.sleep(0.2)
    deadline = time.monotonic() + 60
    ids = {answer.request_id for answer in answers}
    while {row.request_id for row in served.rows()} & ids != ids and time.monotonic() < deadline:
        time.sleep(0.2)
    assert Counter(row.request_id for row in served.rows() if row.request_id in ids) == dict.fromkeys(ids, 1)
