"""Several ranks, engines and API servers: each token is reported once, and each request joined once.

Each rank here is a process on the CPU. Batch-sharded sampling is not among them: vLLM's CPU communicator cannot gather
the sampled ids; which rank reports which slot is tested in ``integration/tests/engine/test_ranks.py``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.harness.runners import RUNNERS, runner_environment
from integration.harness.vllm_server import MODEL_NAME, vllm
from tests.harness.collector import collector
from tests.harness.processes import environment

from corevital_otel.cli.demo.tasks import make_tasks
from corevital_otel.store.reader import StoreReader

pytestmark = pytest.mark.engine

UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
PROMPTS = [task.prompt + "\n" for kind in ("add", "sort", "story") for task in make_tasks(kind, 4, seed=9)]


# vLLM's V1 crashes with pipeline parallelism on a CPU, with and without corevital
SPLITS = [("v1", "tensor_parallel_size"), ("mrv2", "tensor_parallel_size"), ("mrv2", "pipeline_parallel_size")]


@pytest.mark.parametrize(("runner", "split"), [split for split in SPLITS if split[0] in RUNNERS])
def test_a_model_on_two_ranks_is_reported_once(runner: str, split: str, tmp_path: Path) -> None:
    params = {"temperature": 0.0, "max_tokens": 15}
    rounds = [[[prompt, params] for prompt in PROMPTS]]
    job = {"processors": ["corevital"], "rounds": rounds, "engine": {split: 2}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    env = {"COREVITAL_DB": str(tmp_path / "corevital.db"), **UNBOUND, **runner_environment(runner)}
    done = subprocess.run(
        [sys.executable, "-m", "integration.harness.offline", "job.json", "out.json"],
        cwd=tmp_path, env=environment(env), capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    tokens = json.loads((tmp_path / "out.json").read_text())[0]
    rows = {int(row.request_id): row for row in StoreReader(tmp_path / "corevital.db").list_reports(limit=1000)}
    assert len(rows) == len(PROMPTS)
    for number, (output,) in enumerate(tokens):
        assert rows[number].summary["corevital.tokens.observed"] == rows[number].output_tokens == len(output)
        assert "corevital.incomplete" not in rows[number].summary
        assert rows[number].summary["corevital.runner"] == runner


@pytest.mark.timeout(1200)
def test_two_engines_behind_two_api_servers_join_each_request_once(tmp_path: Path) -> None:
    async def send(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            body = {"model": MODEL_NAME, "max_tokens": 12, "temperature": 0.8}
            replies = await asyncio.gather(
                *(http.post("/v1/completions", json={**body, "prompt": prompt}) for prompt in PROMPTS * 4)
            )
        return [reply.raise_for_status().json()["id"] for reply in replies]

    with collector(tmp_path) as rotel:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": rotel.grpc, "OTEL_BSP_SCHEDULE_DELAY": "200", **UNBOUND}
        many = ("--data-parallel-size", "2", "--api-server-count", "2")
        with vllm(tmp_path, *many, env=env, ready_s=900) as server:  # seven processes that import vLLM, on two cores
            answered, senders = list[str](), set[Any]()
            deadline = time.monotonic() + 120
            while (
                len(senders) < 2 and time.monotonic() < deadline
            ):  # the first one that is ready serves alone for a while
                answered += asyncio.run(send(server.url))
                spans = rotel.sink.wait_for(len(answered))
                senders = {span.resource.get("service.instance.id") for span in spans}
        assert server.wait_gone(5) == {}
    assert Counter(span.attributes["gen_ai.response.id"] for span in spans) == Counter(answered)
    assert all("corevital.incomplete" not in span.attributes for span in spans)
    assert len(senders) == 2, "both API servers answered, and each sent its own requests' spans"
    rows = StoreReader(tmp_path / "runs/corevital.db").list_reports(limit=1000)
    assert Counter(row.request_id for row in rows) == Counter(answered)
