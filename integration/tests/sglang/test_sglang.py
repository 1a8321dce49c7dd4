"""SGLang: two real servers with corevital, with one tokenizer worker and with two, and one without, all at once."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.harness.sglang_server import PYTHON, Sglang
from integration.harness.vllm_server import MODEL_NAME
from tests.harness.collector import Sink, Span, collector
from tests.harness.processes import free_port

from corevital_otel.store.reader import StoredReport, StoreReader

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON.exists(), reason="SGLang is not here: `make test` installs it"),
]

CALLER = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{CALLER}-b7ad6b7169203331-01"
STORY = "Tell me a story about a baker.\n"
ONE_BY_ONE: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "frequency": {"temperature": 0, "frequency_penalty": 0.5},
    "repetition": {"temperature": 0.7, "repetition_penalty": 1.3},
    "top_k": {"temperature": 0.8, "top_k": 40},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "min_p": {"temperature": 1.2, "min_p": 0.05},
    "stop": {"temperature": 0, "stop": ["the"]},
    "full": {"temperature": 0, "custom_params": {"corevital_capture": "full", "corevital_tags": "a, b", "mine": 1}},
}
"""Sent one after the other, so that the seed of the server decides what is sampled."""


@dataclass
class Served:
    """What clients saw, and what corevital made of it.

    Attributes:
        workers: tokenizer workers.
        alone: answers without corevital, by name.
        single: the same with it.
        expected: sequences by the id that their client saw.
        hung_up: ids of clients that hung up.
        refused: status and text of the request with a wrong argument.
    """

    workers: int
    alone: dict[str, Any]
    single: dict[str, Any]
    expected: Counter[str] = field(default_factory=Counter)
    hung_up: set[str] = field(default_factory=set)
    refused: tuple[int, str] = (0, "")
    rows: list[StoredReport] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    others: list[Span] = field(default_factory=list)
    page: str = ""
    log: str = ""
    left: dict[int, str] = field(default_factory=dict)
    sink: Sink | None = None

    def rows_of(self, request_id: str) -> list[StoredReport]:
        return sorted((row for row in self.rows if row.request_id == request_id), key=lambda row: row.sequence)


def send_one_by_one(http: httpx.Client) -> dict[str, Any]:
    answers = {}
    for name, params in ONE_BY_ONE.items():
        body = {
            "text": STORY,
            "rid": f"single-{name}",
            "sampling_params": {"max_new_tokens": 24, **params},
            "return_logprob": name in ("greedy", "full"),
        }
        answers[name] = http.post("/generate", json=body).raise_for_status().json()
    body = {"text": STORY, "sampling_params": {"max_new_tokens": 12, "temperature": 0.8, "n": 2}}
    answers["n"] = http.post("/generate", json=body).raise_for_status().json()
    return answers


def send_at_once(http: httpx.Client, served: Served) -> None:
    """Mixed requests, many at a time."""
    lock = threading.Lock()
    chat: dict[str, Any] = {"model": MODEL_NAME, "messages": [{"role": "user", "content": STORY}], "max_tokens": 16}

    def saw(request_id: str, sequences: int = 1) -> None:
        with lock:
            served.expected[request_id] += sequences

    def plain(params: dict[str, Any], sequences: int = 1) -> None:
        reply = http.post("/v1/chat/completions", json={**chat, **params}, headers={"traceparent": PARENT})
        saw(reply.raise_for_status().json()["id"], sequences)

    def prompts() -> None:
        body = {"model": MODEL_NAME, "prompt": [STORY, "What is 1 + 1?\n"], "max_tokens": 8, "n": 2, "temperature": 0.9}
        saw(http.post("/v1/completions", json=body).raise_for_status().json()["id"], 4)

    def streamed(number: int) -> None:
        with http.stream("POST", "/v1/chat/completions", json={**chat, "stream": True, "seed": number}) as reply:
            lines = [line for line in reply.iter_lines() if line.startswith("data: {")]
        saw(json.loads(lines[0].removeprefix("data: "))["id"])

    def hangs_up(number: int) -> None:
        rid = f"hangup-{number}"
        params = {"max_new_tokens": 1500, "temperature": 0, "ignore_eos": True}
        body = {"text": STORY, "rid": rid, "stream": True, "sampling_params": params}
        with http.stream("POST", "/generate", json=body) as reply:
            chunks = (line for line in reply.iter_lines() if line.startswith("data: {"))
            for _ in range(4):
                next(chunks)
        saw(rid)
        with lock:
            served.hung_up.add(rid)

    def wrong() -> None:
        params = {"max_new_tokens": 4, "custom_params": {"corevital_capture": "sometimes"}}
        reply = http.post("/generate", json={"text": STORY, "sampling_params": params})
        served.refused = reply.status_code, reply.text

    def left_out() -> None:
        http.post("/v1/chat/completions", json={**chat, "custom_params": {"corevital_sample": 0}}).raise_for_status()

    def health() -> None:
        http.get("/health_generate").raise_for_status()

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(hangs_up, number) for number in range(2)]
        jobs += [pool.submit(streamed, number) for number in range(4)]
        jobs += [
            pool.submit(plain, params) for params in ({}, {"temperature": 0}, {"presence_penalty": 1.0}, {"seed": 5})
        ]
        jobs += [pool.submit(plain, {"n": 2}, 2), pool.submit(prompts), pool.submit(wrong)]
        jobs += [pool.submit(left_out), pool.submit(health)]
    for job in jobs:
        job.result()


@pytest.fixture(scope="module")
def all_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Served]]:
    folders = {workers: tmp_path_factory.mktemp(f"sglang-{workers}") for workers in (0, 1, 2)}
    ports = {workers: free_port() for workers in (1, 2)}
    with ExitStack() as stack:
        rotels = {workers: stack.enter_context(collector(folders[workers])) for workers in ports}
        servers = {0: Sglang(folders[0], env={"COREVITAL_ATTACH": "", "COREVITAL_HTTP": ""})}
        stack.callback(servers[0].stop)
        for workers, port in ports.items():
            env = {
                "COREVITAL_ATTACH": "sglang",
                "COREVITAL_HTTP": f"127.0.0.1:{port}",
                "OTEL_EXPORTER_OTLP_ENDPOINT": rotels[workers].grpc,
                "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            }
            endpoint = rotels[workers].grpc.removeprefix("http://")
            tracing = ("--enable-trace", "--otlp-traces-endpoint", endpoint)
            servers[workers] = Sglang(folders[workers], "--tokenizer-worker-num", str(workers), *tracing, env=env)
            stack.callback(servers[workers].stop)
        for server in servers.values():
            server.wait_ready(240)
        clients = {
            workers: stack.enter_context(httpx.Client(base_url=server.url, timeout=120))
            for workers, server in servers.items()
        }
        with ThreadPoolExecutor() as pool:
            single = dict(zip(clients, pool.map(send_one_by_one, clients.values()), strict=True))
        assert not (folders[0] / "runs").exists(), "not attached, and yet there is a store"
        found = {}
        for workers in ports:
            served = found[workers] = Served(workers, single[0], single[workers])
            served.sink = rotels[workers].sink
            served.expected.update({f"single-{name}": 1 for name in ONE_BY_ONE})
            served.expected.update(answer["meta_info"]["id"] for answer in single[workers]["n"])
            send_at_once(clients[workers], served)
        for workers, served in found.items():
            sink, total = rotels[workers].sink, served.expected.total()
            served.spans = sink.wait_for(total, 40.0)
            served.page = httpx.get(f"http://127.0.0.1:{ports[workers]}/metrics", timeout=10).text
            served.rows = _rows(folders[workers], total)
            servers[workers].process.terminate()
        for workers, served in found.items():
            served.left = servers[workers].wait_gone(30)
            served.log = servers[workers].text()
            served.others = list(rotels[workers].sink.others)
        yield found


def _rows(folder: Path, total: int) -> list[StoredReport]:
    reader = StoreReader(folder / "runs/corevital.db")
    deadline = time.monotonic() + 10
    while len(listed := reader.list_reports(limit=1000)) < total and time.monotonic() < deadline:
        time.sleep(0.2)
    return [row for request_id in {row.request_id for row in listed} for row in reader.get(request_id)]


@pytest.fixture(params=[1, 2])
def served(all_served: dict[int, Served], request: pytest.FixtureRequest) -> Served:
    return all_served[request.param]


def test_rows_spans_and_sequences_are_the_same(served: Served) -> None:
    assert Counter(row.request_id for row in served.rows) == served.expected
    assert Counter(span.attributes["gen_ai.response.id"] for span in served.spans) == served.expected
    rows = {row.span_id: row for row in served.rows}
    for span in served.spans:
        assert (span.attributes, span.trace_id) == (rows[span.span_id].summary, rows[span.span_id].trace_id)
    for request_id, sequences in served.expected.items():
        numbers = [row.sequence for row in served.rows_of(request_id)]
        assert numbers == list(range(sequences)) or (sequences == 1 and numbers[0] < 2), request_id


def test_every_token_is_observed_and_reported_once(served: Served) -> None:
    for row in served.rows:
        assert "corevital.incomplete" not in row.summary, row
        assert row.summary["corevital.tokens.observed"] == row.output_tokens
        assert (
            row.finish_reason == "abort"
            if row.request_id in served.hung_up
            else row.finish_reason in ("stop", "length")
        )
    for name, answer in served.single.items():
        for one in answer if isinstance(answer, list) else [answer]:
            (row,) = served.rows_of(one["meta_info"]["id"])
            assert row.output_tokens == one["meta_info"]["completion_tokens"] == len(one["output_ids"]), name
            assert row.prompt_tokens == one["meta_info"]["prompt_tokens"]
            assert row.finish_reason == one["meta_info"]["finish_reason"]["type"]


def test_tokens_are_those_of_the_engine_alone(served: Served) -> None:
    def tokens(answers: dict[str, Any]) -> dict[str, Any]:
        return {
            name: [one["output_ids"] for one in (answer if isinstance(answer, list) else [answer])]
            for name, answer in answers.items()
        }

    assert tokens(served.single) == tokens(served.alone)


def test_surprisal_is_the_engine_s_own_log_probability(served: Served) -> None:
    (row,) = served.rows_of("single-full")
    theirs = [-value / math.log(2) for value, *_ in served.single["full"]["meta_info"]["output_token_logprobs"]]
    assert row.series is not None
    assert list(row.series.surprisal) == pytest.approx(theirs, abs=1e-3)


def test_arguments_are_read_and_wrong_ones_refused(served: Served) -> None:
    (row,) = served.rows_of("single-full")
    assert row.summary["corevital.capture"] == "full"
    assert list(row.summary["corevital.tags"]) == ["a", "b"]
    status, text = served.refused
    assert status == 400
    assert "custom_params: corevital_capture='sometimes' is not allowed: use one of summary, full, on_risk" in text


def test_the_span_has_what_scheduler_and_frontend_know(served: Served) -> None:
    chats = [span for span in served.spans if span.attributes["gen_ai.operation.name"] == "chat"]
    assert sum(span.trace_id == CALLER for span in chats) == 6, "four plain chats, and one with n=2"
    for span in served.spans:
        about = span.attributes
        assert about["gen_ai.provider.name"] == "sglang"
        assert (about["corevital.engine"], about["corevital.runner"]) == ("sglang", "srt")
        assert about["corevital.logits.stage"] == "pre_grammar"
        assert about["gen_ai.request.model"] == MODEL_NAME
        assert about["corevital.queue_s"] >= 0
        assert about["gen_ai.response.time_to_first_chunk"] > 0
        assert span.resource["corevital.engine.name"] == "sglang"


def test_metrics_are_on_the_hub_s_port_and_sent_by_otlp(served: Served) -> None:
    counted = [line for line in served.page.splitlines() if line.startswith("corevital_requests_total{")]
    assert sum(float(line.rpartition(" ")[2]) for line in counted) == served.expected.total(), served.page[:500]
    assert served.sink is not None
    assert {"corevital.requests", "corevital.tokens"} <= served.sink.metrics.names()


def test_sglang_s_own_tracing_beside_ours_counts_no_token(served: Served) -> None:
    assert served.others, "SGLang's own tracing sent nothing"
    names = {name for span in served.others for name in span.attributes}
    assert not [name for name in names if name.startswith("gen_ai.usage.")]
    assert "gen_ai.request.id" in names, "where the token counts would be"


def test_the_log_is_one_line_and_nothing_is_left(served: Served) -> None:
    ours = [line for line in served.log.splitlines() if line.startswith("corevital ")]
    assert len(ours) == 1, ours
    assert "measures tiny: sglang" in ours[0]
    assert served.left == {}
