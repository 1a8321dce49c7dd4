"""Data parallel over two hosts, one of them ``vllm serve --headless``: a hundred mixed requests, each one span and row.

The second host is a network namespace. One hub, on the first host, serves both engines, with either frontend.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from integration.harness.frontends import checks, hosts
from integration.harness.frontends.checks import Outcome, Reference, gather
from integration.harness.frontends.http_client import send
from integration.harness.frontends.leftovers import Trail
from integration.harness.frontends.mixed import mixed
from integration.harness.frontends.rust import BINARY, rust_environment
from integration.harness.runners import python_path
from integration.harness.vllm_server import MODEL, MODEL_NAME, Vllm
from tests.harness.collector import collector
from tests.harness.processes import BIN, Group, environment, free_port

WHY_NOT = hosts.why_not()

pytestmark = [pytest.mark.engine, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Served:
    """What happened, each host's log, and what was left."""

    frontend: str
    outcome: Outcome
    logs: list[str]
    left: list[str]


@pytest.fixture(scope="module", params=["rust", "python"])
def served(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Served]:
    rust = request.param == "rust"
    if rust and not BINARY.exists():
        pytest.skip("vLLM's Rust frontend is not here: `make test` fetches it")
    here, there = (tmp_path_factory.mktemp(name) for name in ("here", "there"))
    requests = mixed(choices=not rust)
    trail = Trail()
    with collector(here) as rotel, hosts.two_hosts() as two:
        parallel = ["--data-parallel-size", "2", "--data-parallel-size-local", "1", "--dtype", "float32"]
        parallel += ["--data-parallel-address", two.here, "--data-parallel-rpc-port", str(free_port())]
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": rotel.grpc,  # not reachable from the second host
            "COREVITAL_HUB": f"tcp://{two.here}:{free_port()}",
            "COREVITAL_HUB_KEY": "between two hosts of a test, nobody else",
            "PYTHONPATH": python_path(),
            **(rust_environment() if rust else {}),
            **UNBOUND,
            **trail.env,
        }
        near = {**env, "VLLM_HOST_IP": two.here, "COREVITAL_HTTP": "none"}
        server = Vllm(here, *parallel, "--api-server-count", "1", env=near)
        command = [*two.prefix, str(BIN / "vllm"), "serve", str(MODEL), "--served-model-name", MODEL_NAME, *parallel]
        command += ["--headless", "--data-parallel-start-rank", "1", "--max-model-len", "2048", "--max-num-seqs", "32"]
        command += ["--enforce-eager", "--logits-processor", "corevital"]
        headless = Group(command, environment({**env, "VLLM_HOST_IP": two.there}), there, there / "vllm.log")
        trail.follow(server)
        trail.follow(headless)
        try:
            server.wait_ready(400)
            answers = send(server.url, requests)
            outcome = gather(requests, answers, rotel.sink, [here / "runs/corevital.db", there / "runs/corevital.db"])
            trail.sockets()
            headless.process.terminate()
            server.process.terminate()
            left = trail.wait_gone(40)
        finally:
            headless.stop()
            server.stop()
        time.sleep(0.2)
        yield Served(request.param, outcome, [server.text(), headless.text()], left)


def test_rows_spans_and_sequences_are_the_same(served: Served) -> None:
    checks.check_exactly_once(served.outcome)


def test_no_token_of_either_host_is_missing(served: Served) -> None:
    checks.check_tokens_are_all_observed(served.outcome, stop_strings_known=served.frontend == "python")


def test_both_hosts_served_and_their_rank_is_on_the_span(served: Served) -> None:
    ranks = [row.summary.get("corevital.data_parallel_rank") for row in served.outcome.rows]
    assert min(ranks.count(0), ranks.count(1)) >= 10
    # a frontend's report does not wait for what the core says of it
    assert ranks.count(None) <= (5 if served.frontend == "python" else 0)


def test_ends_and_arguments_are_those_of_the_caller(served: Served) -> None:
    checks.check_ends(served.outcome, stop_strings_known=served.frontend == "python")
    checks.check_arguments(served.outcome, refused=served.frontend == "python")


def test_no_host_warns(served: Served) -> None:
    for log in served.logs:
        warnings = [line for line in log.splitlines() if re.search(r"corevital (WARNING|ERROR)", line)]
        assert [line for line in warnings if "corevital_capture='sometimes' is not allowed" not in line] == []


def test_nothing_is_left_running(served: Served) -> None:
    assert served.left == []


def test_tokens_are_those_of_the_engine_alone(served: Served, reference: Callable[[str], Reference]) -> None:
    checks.check_same_texts(served.outcome, reference("v1"))
