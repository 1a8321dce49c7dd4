"""Disaggregated serving: of two real vLLM servers one prefills and one decodes, and NIXL moves the cache between them.

`make test-disaggregated` installs NIXL, and runs this. A small router is here: it does what vLLM's own example does.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.harness.vllm_server import MODEL_NAME, Vllm
from tests.harness.collector import Span, collector
from tests.harness.processes import free_port, within

from corevital_otel.cli.demo.tasks import make_tasks
from corevital_otel.store.reader import StoredReport, StoreReader

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ROLES = ("prefill", "decode")
REQUESTS = 12
TRANSFER = {"do_remote_decode": True, "do_remote_prefill": False}
PROMPTS = [
    " ".join(task.prompt for task in make_tasks("fact", 30, seed=seed)) + "\nWhat is 14 + 21?\n"
    for seed in range(REQUESTS)
]
"""Of several blocks of the cache each: of a shorter one nothing is transferred."""


@dataclass
class Legs:
    """What the clients got, and what is known of each leg.

    Attributes:
        alone: answers of one server to requests without legs.
        answers: those of both servers, to the same prompts.
        rows: by role and the client's id.
        spans: by span id.
    """

    alone: list[str]
    answers: list[str]
    rows: dict[str, dict[str, StoredReport]]
    spans: dict[str, Span]


def ask(server: Vllm, prompt: str, request_id: str, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL_NAME, "prompt": prompt, "temperature": 0, "max_tokens": 24, "ignore_eos": True, **fields}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, headers={"X-Request-Id": request_id}, timeout=120)
    reply.raise_for_status()
    found: dict[str, Any] = reply.json()
    return found


def route(servers: dict[str, Vllm], prompt: str, request_id: str) -> str:
    """Both legs of a request, as vLLM's example of a router has them."""
    first = ask(servers["prefill"], prompt, request_id, max_tokens=1, kv_transfer_params=TRANSFER)
    second = ask(servers["decode"], prompt, request_id, kv_transfer_params=first["kv_transfer_params"])
    return str(second["choices"][0]["text"])


@pytest.fixture(scope="module")
def legs(tmp_path_factory: pytest.TempPathFactory) -> Legs:
    if "NIXL" not in os.environ:
        pytest.skip("NIXL is not installed: make test-disaggregated")
    folder = tmp_path_factory.mktemp("legs")
    transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
    with ExitStack() as stack:
        rotel = stack.enter_context(collector(folder))
        servers = {}
        for role in ROLES:
            (folder / role).mkdir()
            env = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": rotel.grpc, "PYTHONPATH": os.environ["NIXL"],
                "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
                "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo", "COREVITAL_HTTP": "none",
            }  # fmt: skip
            arguments = ["--dtype", "float32", "--kv-transfer-config", json.dumps(transfer)]
            servers[role] = Vllm(folder / role, *arguments, "--no-enable-prefix-caching", env=env)
            stack.callback(servers[role].stop)
        for server in servers.values():
            server.wait_ready(420)
        alone = [ask(servers["decode"], prompt, f"alone-{i}")["choices"][0]["text"] for i, prompt in enumerate(PROMPTS)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda i: route(servers, PROMPTS[i], f"legs-{i}"), range(REQUESTS)))
        rows = within(30, lambda: _rows(folder)) or pytest.fail("rows are missing")
        spans = rotel.sink.wait_for(3 * REQUESTS)
    return Legs(alone, answers, rows, {span.span_id: span for span in spans})


def _rows(folder: Path) -> dict[str, dict[str, StoredReport]] | None:
    found = {
        role: {row.request_id: row for row in StoreReader(folder / role / "runs/corevital.db").list_reports(limit=1000)}
        for role in ROLES
    }
    return found if len(found["prefill"]) == REQUESTS and len(found["decode"]) == 2 * REQUESTS else None


def test_tokens_are_those_of_one_server(legs: Legs) -> None:
    assert legs.answers == legs.alone


def test_each_leg_is_one_row_and_one_span_and_they_name_each_other(legs: Legs) -> None:
    assert len(legs.spans) == 3 * REQUESTS
    for number in range(REQUESTS):
        first, second = (legs.rows[role][f"cmpl-legs-{number}"] for role in ROLES)
        assert first.summary["corevital.role"] == "prefill"
        assert "corevital.role" not in second.summary
        assert first.summary["corevital.prefill.request_id"] == second.summary["corevital.prefill.request_id"]
        for row in (first, second):
            assert legs.spans[row.span_id].attributes == row.summary
            assert row.summary["corevital.tokens.observed"] == row.output_tokens
            assert "corevital.incomplete" not in row.summary
        assert (first.output_tokens, second.output_tokens) == (1, 24)


def test_a_first_leg_is_neither_truncated_nor_scored(legs: Legs) -> None:
    for row in legs.rows["prefill"].values():
        assert "truncated" not in row.flags
        assert row.risk_score is None


def test_the_second_leg_takes_its_prompt_from_the_first(legs: Legs) -> None:
    for number in range(REQUESTS):
        second = legs.rows["decode"][f"cmpl-legs-{number}"].summary
        assert second["corevital.cached_tokens.source"] == "external"
        assert second["gen_ai.usage.cache_read.input_tokens"] > 0
        alone = legs.rows["decode"][f"cmpl-alone-{number}"].summary
        assert "corevital.cached_tokens.source" not in alone
