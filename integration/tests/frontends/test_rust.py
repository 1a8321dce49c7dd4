"""vLLM's Rust frontend, whose requests are seen only in the engine core: a hundred mixed requests over HTTP, some of
them over its gRPC port. It has no ``n``, does not pass stop strings on, and does not refuse our wrong arguments.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import httpx
import pytest
from integration.harness.frontends import checks
from integration.harness.frontends.checks import Outcome, Reference, gather
from integration.harness.frontends.grpc_client import Inference
from integration.harness.frontends.grpc_client import send as send_by_grpc
from integration.harness.frontends.http_client import send
from integration.harness.frontends.leftovers import Trail
from integration.harness.frontends.mixed import Request, mixed
from integration.harness.frontends.rust import BINARY, HAS_GRPC, rust_environment
from integration.harness.runners import RUNNERS, runner_environment
from integration.harness.vllm_server import MODEL_NAME, Vllm
from tests.harness.collector import collector
from tests.harness.processes import free_port

from corevital_otel.store.reader import StoredReport, StoreReader

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not BINARY.exists(), reason="vLLM's Rust frontend is not here: `make test` fetches it"),
]


@dataclass(frozen=True)
class Served:
    """What happened, and the hub's own port meanwhile."""

    runner: str
    outcome: Outcome
    pages: list[str]
    log: str
    left: list[str]
    killed: list[StoredReport]


def by_grpc(request: Request) -> bool:
    """Whether a request goes to the gRPC port: completions without what that service has no place for."""
    return HAS_GRPC and not (request.chat or request.stream or request.hangs_up or request.arguments)


def fetch(url: str) -> str:
    """A page, or what went wrong, for the test to show."""
    try:
        reply = httpx.get(url, timeout=30)
    except httpx.HTTPError as error:
        return repr(error)
    return reply.text if reply.status_code == 200 else f"HTTP {reply.status_code} {reply.text}"


def kill_core_under_way(server: Vllm, trail: Trail) -> None:
    """SIGKILL to the engine's core while it answers a request. The launcher ends the others by itself."""
    body = {"model": MODEL_NAME, "prompt": "Tell me a story.\n", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    headers = {"X-Request-Id": "killed"}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=60) as reply:
        lines = reply.iter_lines()
        for _ in range(4):
            next(lines)
        (core,) = (pid for pid, command in trail.processes().items() if command.startswith("VLLM::EngineCore"))
        os.kill(core, signal.SIGKILL)


@pytest.fixture(scope="module", params=RUNNERS)
def served(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("rust")
    requests = mixed(choices=False)
    trail = Trail()
    port, grpc_port = free_port(), free_port()
    with collector(folder) as rotel:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": rotel.grpc,
            "COREVITAL_HTTP": f"127.0.0.1:{port}",
            **runner_environment(request.param),
            **rust_environment(),
            **trail.env,
        }
        grpc_arguments = ["--grpc-port", str(grpc_port)] if HAS_GRPC else []
        server = Vllm(folder, "--dtype", "float32", *grpc_arguments, env=env)
        trail.follow(server)
        try:
            server.wait_ready(300)
            with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
                inference = Inference(channel, MODEL_NAME)
                answers = send_by_grpc(inference, [one for one in requests if by_grpc(one)])
            answers += send(server.url, [one for one in requests if not by_grpc(one)])
            outcome = gather(requests, answers, rotel.sink, [folder / "runs/corevital.db"])
            pages = ["/metrics", *(f"/corevital/v1/requests/{row.request_id}" for row in outcome.rows[:5])]
            served = [fetch(f"http://127.0.0.1:{port}{page}") for page in pages]
            trail.sockets()
            if request.param == RUNNERS[-1]:
                kill_core_under_way(server, trail)
            else:
                server.process.terminate()
            left = trail.wait_gone(30)
        finally:
            server.stop()
        killed = StoreReader(folder / "runs/corevital.db").get("cmpl-killed")
        yield Served(request.param, outcome, served, server.text(), left, killed)


def test_rows_spans_and_sequences_are_the_same(served: Served) -> None:
    checks.check_exactly_once(served.outcome)
    checks.check_tokens_are_all_observed(served.outcome, stop_strings_known=False)


def test_ends_and_arguments_are_those_of_the_caller(served: Served) -> None:
    checks.check_ends(served.outcome, stop_strings_known=False)
    checks.check_arguments(served.outcome, refused=False)
    assert served.log.count("corevital_capture='sometimes' is not allowed") == 1


def test_the_span_has_what_the_core_knows(served: Served) -> None:
    for row in served.outcome.rows:
        assert row.summary["corevital.runner"] == served.runner
        assert row.summary["corevital.queue_s"] >= 0
        if row.output_tokens:
            assert row.summary["corevital.prefill_s"] > 0
            assert row.summary["gen_ai.response.time_to_first_chunk"] > 0


def test_the_hub_serves_metrics_and_reports_on_its_own_port(served: Served) -> None:
    metrics, *reports = served.pages
    counted = [line for line in metrics.splitlines() if line.startswith("corevital_requests_total{")]
    assert sum(float(line.rpartition(" ")[2]) for line in counted) == len(served.outcome.rows), metrics[:500]
    for row, report in zip(served.outcome.rows, reports, strict=False):
        assert f'"{row.request_id}"' in report


def test_nothing_is_left_running(served: Served) -> None:
    assert served.left == []


def test_a_request_of_an_engine_that_is_killed_is_reported(served: Served) -> None:
    assert len(served.killed) == (served.runner == RUNNERS[-1])
    for row in served.killed:
        assert row.finish_reason in ("abort", "error")
        assert row.summary["corevital.tokens.observed"] > 0
        assert row.summary["corevital.incomplete"] is True, "its tokens are unknown"


def test_tokens_are_those_of_the_engine_alone(served: Served, reference: Callable[[str], Reference]) -> None:
    checks.check_same_texts(served.outcome, reference(served.runner))
