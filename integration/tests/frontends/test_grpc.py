"""vLLM's gRPC server, ``vllm serve --grpc``: a hundred mixed requests, each sequence one span and one row.

Its service has no place for ``corevital_*`` arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from integration.harness.frontends import checks
from integration.harness.frontends.checks import Outcome, Reference, gather
from integration.harness.frontends.grpc_client import Engine, send
from integration.harness.frontends.leftovers import Trail
from integration.harness.frontends.mixed import mixed
from integration.harness.frontends.text import decode
from integration.harness.runners import python_path
from integration.harness.vllm_server import Vllm
from tests.harness.collector import collector
from tests.harness.processes import ROOT

PACKAGES = ROOT / ".venv-grpc/packages"

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PACKAGES.exists(), reason="vLLM's gRPC server is not installed: `make test` installs it"),
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("grpc")
    requests = mixed(arguments=False)
    trail = Trail()
    with collector(folder) as rotel:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": rotel.grpc, "PYTHONPATH": python_path(PACKAGES), **trail.env}
        server = Vllm(folder, "--grpc", "--dtype", "float32", env=env)
        trail.follow(server)
        try:
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                grpc.channel_ready_future(channel).result(300)
                answers = send(Engine(channel, decode), requests)
            outcome = gather(requests, answers, rotel.sink, [folder / "runs/corevital.db"])
            trail.sockets()
            server.process.terminate()
            assert trail.wait_gone(30) == []
        finally:
            server.stop()
    return outcome


def test_rows_spans_and_sequences_are_the_same(outcome: Outcome) -> None:
    checks.check_exactly_once(outcome)
    checks.check_tokens_are_all_observed(outcome)


def test_ends_are_those_of_the_caller(outcome: Outcome) -> None:
    checks.check_ends(outcome)


def test_tokens_are_those_of_the_engine_alone(outcome: Outcome, reference: Callable[[str], Reference]) -> None:
    checks.check_same_texts(outcome, reference("v1"), cut=False)
