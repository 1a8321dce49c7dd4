"""Metrics of a real server in a real Prometheus: scraped from the engine's page, and by OTLP through a collector.

With one API server the engine's page shows one process's registry, with several it adds up files of all of them.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.harness.prometheus import Prometheus, prometheus
from integration.harness.runners import python_path
from integration.harness.vllm_server import MODEL_NAME, Vllm, vllm
from tests.harness.collector import Collector, collector
from tests.harness.processes import BIN, ROOT, environment

from corevital_otel import __version__
from corevital_otel.cli.demo.tasks import make_tasks
from corevital_otel.store.reader import StoreReader

pytestmark = pytest.mark.engine

COUNTERS = {
    "corevital_requests_total": {"finish_reason", "risk_level"},
    "corevital_requests_faulty_total": {"flag"},
    "corevital_health_flags_total": {"flag"},
    "corevital_health_warnings_total": {"warning"},
    "corevital_tokens_total": set[str](),
    "corevital_preemptions_total": set[str](),
    "corevital_reasoning_tokens_total": set[str](),
    "corevital_draft_accepted_tokens_total": set[str](),
}
HISTOGRAMS = {
    "corevital_risk_score": {"basis"},
    "corevital_entropy_bits": set[str](),
    "corevital_surprisal_bits": set[str](),
    "corevital_repetition_share": set[str](),
    "corevital_request_queue_seconds": set[str](),
    "corevital_request_prefill_seconds": set[str](),
    "corevital_request_decode_seconds": set[str](),
    "gen_ai_server_request_duration_seconds": set[str](),
    "gen_ai_server_time_to_first_token_seconds": set[str](),
    "gen_ai_server_time_per_output_token_seconds": set[str](),
}
GAUGES = {f"corevital_sequences_{state}": set[str]() for state in ("running", "looping", "alarmed")}
TELEMETRY = {
    "corevital_build_info": {"version", "engine", "engine_version"},
    "corevital_requests_internal_total": {"kind"},
    "corevital_sequences_unobserved_total": set[str](),
    "corevital_telemetry_dropped_total": {"what", "why"},
    "corevital_telemetry_exported_total": {"signal"},
    "corevital_telemetry_lag_seconds_count": set[str](),
    "corevital_telemetry_cpu_time_seconds_total": set[str](),
    "corevital_telemetry_faults_total": set[str](),
    "corevital_telemetry_queue": {"what"},
}
SERIES = {
    **{name: {"gen_ai_request_model", *labels} for name, labels in {**COUNTERS, **GAUGES}.items()},
    **{
        f"{name}_{part}": {"gen_ai_request_model", *labels, *({"le"} if part == "bucket" else ())}
        for name, labels in HISTOGRAMS.items()
        for part in ("bucket", "sum", "count")
    },
    **TELEMETRY,
}
"""Every series of the contract and of corevital's own telemetry, with its labels."""

CONVENTIONS = {"gen_ai_operation_name", "gen_ai_provider_name", "error_type"}
"""Further labels of the GenAI metrics over OTLP, which the conventions require."""
SCRAPED = {"__name__", "job", "instance"}
FROM_OTLP = {*SCRAPED, "service_instance_id"}

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PROMPTS = [task.prompt for kind in ("add", "sort", "story", "loop") for task in make_tasks(kind, 5, seed=3)]


@dataclass
class Scraped:
    """A server, its collector, and the Prometheus that scrapes both."""

    server: Vllm
    collector: Collector
    prometheus: Prometheus
    database: Path
    api_servers: int
    ids: list[str]
    tokens: int

    @property
    def sequences(self) -> int:
        return len(self.ids) + 1  # one request had n=2


async def chat(http: httpx.AsyncClient, prompt: str, **body: object) -> tuple[str, int]:
    """Sends a request; its id and how many tokens it got."""
    messages = [{"role": "user", "content": prompt}]
    reply = await http.post(
        "/v1/chat/completions",
        json={"model": MODEL_NAME, "messages": messages, "max_tokens": 40, **body},
        headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
    )
    answer = reply.raise_for_status().json()
    return answer["id"], answer["usage"]["completion_tokens"]


async def _traffic(url: str) -> tuple[list[str], int]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        answers = await asyncio.gather(*(chat(http, prompt) for prompt in PROMPTS), chat(http, PROMPTS[0], n=2))
    return [answer[0] for answer in answers], sum(answer[1] for answer in answers)


@pytest.fixture(scope="module", params=[1, 2], ids=["one API server", "two API servers"])
def scraped(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Scraped]:
    folder = tmp_path_factory.mktemp("metrics")
    with collector(folder) as rotel, rotel.sink.metrics.page() as page:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": rotel.grpc, "OTEL_METRIC_EXPORT_INTERVAL": "500"}
        env |= {"OTEL_BSP_SCHEDULE_DELAY": "200", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        env |= {"COREVITAL_LOG_FORMAT": "json", "PYTHONPATH": python_path()}
        processors = ("--logits-processors", "integration.harness.faults:PoisonedLogits", "corevital")
        many = ("--api-server-count", str(request.param)) if request.param > 1 else ()
        with (
            vllm(folder, *processors, *many, env=env, plugin=False, ready_s=600) as server,
            prometheus(folder, {"vllm": server.port, "otlp": page}) as prom,
        ):
            ids, tokens = asyncio.run(_traffic(server.url))
            database = folder / "runs/corevital.db"
            found = Scraped(server, rotel, prom, database, request.param, ids, tokens)
            for job in ("vllm", "otlp"):
                requests = f'sum(corevital_requests_total{{job="{job}"}})'
                prom.wait_for(lambda requests=requests: prom.value(requests) >= found.sequences)
            yield found


def test_each_metric_of_the_contract_is_scraped_beside_the_engines_own(scraped: Scraped) -> None:
    names = scraped.prometheus.names("vllm")
    assert names >= SERIES.keys()
    assert "vllm:num_requests_running" in names
    types = scraped.prometheus.metadata()
    assert all(types[name] == "counter" for name in COUNTERS)
    assert all(types[name] == "histogram" for name in HISTOGRAMS)
    assert all(types[name] == "gauge" for name in GAUGES)


def test_each_metric_of_the_contract_arrives_by_otlp_through_a_collector(scraped: Scraped) -> None:
    assert scraped.prometheus.names("otlp") >= SERIES.keys()
    assert len({resource["service.instance.id"] for resource in scraped.collector.sink.metrics.resources()}) == (
        scraped.api_servers
    ), "each API server sends its own metrics, under the same instance as its spans"


@pytest.mark.parametrize(("job", "more"), [("vllm", SCRAPED), ("otlp", FROM_OTLP)])
def test_labels_are_those_of_the_contract_and_never_an_id(scraped: Scraped, job: str, more: set[str]) -> None:
    for name, allowed in SERIES.items():
        conventions = CONVENTIONS if job == "otlp" and name.startswith("gen_ai_server") else set[str]()
        for labels, _ in scraped.prometheus.query(f'{name}{{job="{job}"}}'):
            assert labels.keys() - more - conventions == allowed, name
    everything = json.dumps(scraped.prometheus.query(f'{{job="{job}",__name__=~"corevital.*|gen_ai.*"}}'))
    assert not [identifier for identifier in (*scraped.ids, TRACE) if identifier in everything]


@pytest.mark.parametrize("job", ["vllm", "otlp"])
def test_values_are_those_of_the_traffic(scraped: Scraped, job: str) -> None:
    def total(name: str, **labels: str) -> float:
        matchers = ",".join(f'{label}="{value}"' for label, value in {"job": job, **labels}.items())
        return scraped.prometheus.value(f"sum({name}{{{matchers}}})")

    rows = StoreReader(scraped.database).list_reports(limit=1000)
    mine = [row for row in rows if row.request_id in scraped.ids]
    assert total("corevital_requests_total", gen_ai_request_model=MODEL_NAME) == scraped.sequences == len(mine)
    assert total("corevital_tokens_total") == scraped.tokens
    truncated = [row for row in mine if row.finish_reason == "length"]
    assert len(truncated) > 1
    assert total("corevital_requests_total", finish_reason="length") == len(truncated)
    assert total("corevital_health_flags_total", flag="truncated") == len(truncated)
    assert total("corevital_health_flags_total", flag="nan_detected") == 0
    assert total("corevital_risk_score_sum", basis="prior") == pytest.approx(sum(row.risk_score or 0 for row in mine))
    for name in HISTOGRAMS:
        of_many = "per_output" in name or "decode" in name
        many = sum(row.output_tokens > 1 for row in mine) if of_many else scraped.sequences
        assert total(f"{name}_count") == many, name
    assert total("corevital_telemetry_lag_seconds_count") == scraped.sequences
    assert total("corevital_telemetry_cpu_time_seconds_total") > 0
    assert total("corevital_telemetry_faults_total") == 0
    assert total("corevital_telemetry_dropped_total") == 0
    assert total("corevital_sequences_unobserved_total") == 0
    assert total("corevital_telemetry_exported_total", signal="traces") >= scraped.sequences
    assert total("corevital_telemetry_exported_total", signal="metrics") > 0


@pytest.mark.parametrize("job", ["vllm", "otlp"])
def test_buckets_are_those_of_the_contract_and_of_the_conventions(scraped: Scraped, job: str) -> None:
    def bounds(name: str) -> list[float]:
        found = scraped.prometheus.query(f'count by (le) ({name}_bucket{{job="{job}"}})')
        return sorted(float(labels["le"]) for labels, _ in found)[:-1]

    assert bounds("corevital_risk_score") == pytest.approx([step * 0.05 for step in range(1, 21)])
    assert bounds("gen_ai_server_request_duration_seconds") == pytest.approx([0.01 * 2**step for step in range(14)])
    first = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
    for name in ("gen_ai_server_time_to_first_token", "corevital_request_queue", "corevital_request_prefill"):
        assert bounds(f"{name}_seconds") == first
    assert bounds("corevital_request_decode_seconds") == bounds("gen_ai_server_request_duration_seconds")
    each = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5]
    assert bounds("gen_ai_server_time_per_output_token_seconds") == each


def test_a_latency_leads_to_the_trace_it_came_from(scraped: Scraped) -> None:
    exemplars = scraped.collector.sink.metrics.exemplars("gen_ai.server.request.duration")
    assert exemplars
    assert {exemplar.trace_id for exemplar in exemplars} == {TRACE}
    spans = {span.span_id for span in scraped.collector.sink.spans}
    assert {exemplar.span_id for exemplar in exemplars} <= spans


def test_otlp_metrics_have_the_conventions_attributes(scraped: Scraped) -> None:
    for attributes in scraped.collector.sink.metrics.attributes("gen_ai.server.time_to_first_token"):
        assert attributes == {
            "gen_ai.request.model": MODEL_NAME,
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "vllm",
        }


def test_running_and_looping_sequences_are_counted_while_they_run(scraped: Scraped) -> None:
    prompts = [f"Say {word} forever.\n" for word in ("bang", "hop", "snow", "tock", "roll", "pull")]

    seen = threading.Event()

    def send() -> None:
        body: dict[str, Any] = {"model": MODEL_NAME, "prompt": prompts, "max_tokens": 1900, "temperature": 0}
        body |= {"ignore_eos": True, "logit_bias": {"50": 100}}  # one token forever
        while not seen.is_set():  # how long the gauges take depends on the machine
            httpx.post(f"{scraped.server.url}/v1/completions", json=body, timeout=300).raise_for_status()

    # No alarm here: that takes a profile.
    states = ("running", "looping")
    gauges = [f'sum(corevital_sequences_{state}{{job="{job}"}})' for state in states for job in ("vllm", "otlp")]
    client = threading.Thread(target=send)
    client.start()
    try:
        for gauge in gauges:
            scraped.prometheus.wait_for(lambda gauge=gauge: 0 < scraped.prometheus.value(gauge) <= len(prompts))
    finally:
        seen.set()
        client.join()
    for gauge in gauges:
        scraped.prometheus.wait_for(lambda gauge=gauge: scraped.prometheus.value(gauge) == 0)


def test_watch_reads_the_running_server(scraped: Scraped) -> None:
    done = subprocess.run(
        [str(BIN / "corevital"), "watch", "--once", "--url", scraped.server.url],
        cwd=scraped.database.parents[1], env=environment({}), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert any(line.split()[:3] == [MODEL_NAME, "0", "0"] for line in done.stdout.splitlines()), done.stdout
    assert "chatcmpl-" in done.stdout, "the newest requests"
    assert "telemetry  lost 0" in done.stdout


def our_lines(scraped: Scraped) -> list[dict[str, Any]]:
    """Our JSON lines among the engine's lines."""
    return [json.loads(line) for line in scraped.server.text().splitlines() if line.startswith('{"time"')]


def test_the_log_has_each_servers_start_and_no_error(scraped: Scraped) -> None:
    said = our_lines(scraped)
    assert [line["level"] for line in said] == ["INFO"] * scraped.api_servers
    assert all(line["message"].startswith(f"corevital {__version__} measures {MODEL_NAME}: vllm ") for line in said)
    assert "corevital WARNING" not in scraped.server.text()
    assert "Traceback" not in scraped.server.text()


def test_a_nan_is_counted_and_logged_once_with_request_and_trace_id(scraped: Scraped) -> None:
    async def poisoned() -> list[str]:
        async with httpx.AsyncClient(base_url=scraped.server.url, timeout=120) as http:
            body = {"vllm_xargs": {"poison": "nan"}, "max_tokens": 6, "ignore_eos": True}
            return [(await chat(http, PROMPTS[0], **body))[0] for _ in range(3)]

    ids = asyncio.run(poisoned())
    for job in ("vllm", "otlp"):
        flags = f'sum(corevital_health_flags_total{{job="{job}",flag="nan_detected"}})'
        scraped.prometheus.wait_for(lambda flags=flags: scraped.prometheus.value(flags) == len(ids))
    said = our_lines(scraped)[scraped.api_servers :]  # after their start lines
    assert 1 <= len(said) <= scraped.api_servers
    for line in said:
        assert line["level"] == "WARNING"
        assert line["request_id"] in ids
        assert line["request_id"] in line["message"]
        assert line["trace_id"] == TRACE


def test_each_question_of_the_documentation_has_an_answer(scraped: Scraped) -> None:
    text = (ROOT / "docs/understand/metrics.md").read_text().partition("| question | PromQL |")[2].partition("\n\n")[0]
    questions = re.findall(r"^\| ([A-Z0-9].+?) \| `(.+)` \|$", text, re.MULTILINE)
    assert len(questions) == len(text.strip().splitlines()) - 1 >= 15, "each row is one"

    def unanswered() -> list[str]:
        values = {question: scraped.prometheus.query(expression) for question, expression in questions}
        return [question for question, found in values.items() if not found or math.isnan(found[0][1])]

    asyncio.run(_traffic(scraped.server.url))  # a rate is of what comes after the first scrape
    deadline = time.monotonic() + 20
    while (left := unanswered()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []
